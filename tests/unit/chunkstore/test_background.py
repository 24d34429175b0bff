"""What is fetched when nobody waits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from snapshotter.chunkstore.background import RANGE, RETRY, Background, BackgroundPolicy
from snapshotter.chunkstore.base import SourceUnavailableError
from snapshotter.chunkstore.chain import Node
from snapshotter.chunkstore.reads import Reads
from snapshotter.format.compression import Codec
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.pack import PackEntry
from tests.support.chunks import MemoryBlobs, make_pack, some_chunks

POLICY = BackgroundPolicy(quiet=10.0, rate=1e6)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class StubRest:
    """A layer of chunks of half a range each."""

    def __init__(self, count: int) -> None:
        self.entries = [PackEntry(sha256(b"%d" % n), RANGE, n * RANGE, RANGE // 2, Codec.ZSTD) for n in range(count)]
        self.brought: list[list[Digest]] = []
        self.error: Exception | None = None

    def missing(self) -> Iterator[PackEntry]:
        have = {digest for run in self.brought for digest in run}
        return (entry for entry in self.entries if entry.digest not in have)

    def bring(self, digests: Sequence[Digest]) -> None:
        if self.error is not None:
            raise self.error
        self.brought.append(list(digests))


def make(clock: Clock) -> tuple[Background, Reads]:
    """A background whose steps the test makes itself."""
    reads = Reads(clock)
    background = Background(POLICY, reads, clock)
    background._closing.set()
    return background, reads


def test_nothing_is_fetched_before_it_has_been_quiet() -> None:
    clock, rest = Clock(), StubRest(2)
    background, reads = make(clock)
    background.add("layer", rest)
    background.step()
    assert rest.brought == []
    clock.now = 9.0
    number = reads.begin("fetch", "layer", rest.entries[0].digest)
    background.step()
    reads.end("fetch", number, failed=False)
    clock.now = 18.0
    background.step()
    assert rest.brought == [], "a read waited nine seconds ago"
    clock.now = 30.0
    background.step()
    assert len(rest.brought) == 1


def test_a_read_that_waits_has_the_link_for_itself() -> None:
    clock, rest = Clock(), StubRest(8)
    background, reads = make(clock)
    background.add("layer", rest)
    clock.now = 20.0
    background.step()
    reads.begin("fetch", "layer", rest.entries[7].digest)
    clock.now = 60.0
    background.step()
    assert len(rest.brought) == 1


def test_the_rate_holds() -> None:
    clock, rest = Clock(), StubRest(8)
    background, _ = make(clock)
    background.add("layer", rest)
    clock.now = 20.0
    assert background.step() == RANGE / POLICY.rate
    assert rest.brought == [[entry.digest for entry in rest.entries[:2]]]


def test_a_layer_that_is_all_here_is_done() -> None:
    clock, rest = Clock(), StubRest(2)
    background, _ = make(clock)
    background.add("layer", rest)
    clock.now = 20.0
    background.step()
    assert background.report() == {"layer": {"fetched": RANGE, "state": "fetching"}}
    background.step()
    assert background.report() == {}


def test_a_source_that_fails_is_left_alone_for_a_while_and_the_next_layer_comes() -> None:
    clock, broken, well = Clock(), StubRest(2), StubRest(2)
    background, _ = make(clock)
    broken.error = SourceUnavailableError("gone")
    background.add("broken", broken)
    background.add("well", well)
    clock.now = 20.0
    background.step()
    background.step()
    assert well.brought
    broken.error = None
    clock.now += RETRY + 1
    background.step()  # the other one is found to be done
    background.step()
    assert broken.brought


def test_a_node_completes_a_layer_and_no_other(tmp_path: Path) -> None:
    chunks = some_chunks(20, size=20_000)
    place, blob, _ = make_pack(chunks)
    reader = MemoryBlobs()
    reader.add(blob)
    node = Node(tmp_path, background=BackgroundPolicy(quiet=0.0, rate=1e9))
    try:
        mine = {sha256(raw) for raw in chunks[:15]}
        node.complete([place], [reader], "layer", mine.__contains__)
        assert node.background is not None
        while node.background.report():
            pass
        assert all(node.cache.has(digest) for digest in mine)
        assert not any(node.cache.has(sha256(raw)) for raw in chunks[15:])
    finally:
        node.close()
