"""What is fetched when nobody waits."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from snapshotter.chunkstore.background import RANGE, RETRY, Background, BackgroundPolicy
from snapshotter.chunkstore.base import SourceUnavailableError
from snapshotter.chunkstore.chain import Node
from snapshotter.chunkstore.reads import Reads
from snapshotter.format.compression import Codec
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.pack import PackEntry
from tests.support.chunks import MemoryBlobs, make_pack, refs, some_chunks

POLICY = BackgroundPolicy(quiet=10.0, rate=1e6)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class StubRest:
    """A layer of chunks of half a range each."""

    def __init__(self, count: int = 2) -> None:
        self.entries = [PackEntry(sha256(b"%d" % n), RANGE, n * RANGE, RANGE // 2, Codec.ZSTD) for n in range(count)]
        self.brought: list[list[Digest]] = []
        self.error: Exception | None = None
        self.looked: Callable[[], None] = lambda: None

    def missing(self) -> Iterator[PackEntry]:
        self.looked()
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


def test_a_defect_in_one_layer_holds_up_no_other_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    clock, broken, well = Clock(), StubRest(), StubRest()
    background, _ = make(clock)
    broken.error = RuntimeError("a defect")
    background.add("broken", broken)
    background.add("well", well)
    clock.now = 20.0
    background.step()
    background.step()
    assert well.brought
    assert [record.exc_info is not None for record in caplog.records if "broken" in record.message] == [True]


def test_a_layer_that_is_unmounted_is_left_alone_and_nothing_of_it_is_kept() -> None:
    clock, rest = Clock(), StubRest(8)
    background, _ = make(clock)
    background.add("layer", rest)
    clock.now = 20.0
    background.step()
    background.drop("layer", rest)
    background.drop("layer", rest)
    background.step()
    assert len(rest.brought) == 1
    assert background.report() == {}
    gone = weakref.ref(rest)
    del rest
    assert gone() is None


def test_a_layer_that_is_mounted_twice_is_wanted_until_the_last_is_gone() -> None:
    clock, first, second = Clock(), StubRest(), StubRest()
    background, _ = make(clock)
    background.add("layer", first)
    background.add("layer", second)
    clock.now = 20.0
    background.drop("layer", second)
    background.step()
    assert first.brought
    background.drop("layer", first)
    assert background.report() == {}


def test_a_layer_that_goes_while_it_is_looked_at_is_no_defect(caplog: pytest.LogCaptureFixture) -> None:
    """Its metadata is closed then, and whatever comes of that says nothing."""
    clock, rest = Clock(), StubRest()
    background, _ = make(clock)
    background.add("layer", rest)

    def goes() -> None:
        background.drop("layer", rest)
        raise ValueError("operation on a closed file")

    rest.looked = goes
    clock.now = 20.0
    background.step()
    assert background.report() == {}
    assert caplog.records == []


def test_a_node_completes_a_layer_and_no_other(tmp_path: Path) -> None:
    chunks = some_chunks(20, size=20_000)
    place, blob, _ = make_pack(chunks)
    reader = MemoryBlobs()
    reader.add(blob)
    node = Node(tmp_path, background=BackgroundPolicy(quiet=0.0, rate=1e9))
    try:
        mine = {sha256(raw) for raw in chunks[:15]}
        node.chain([place], [reader], "layer", lambda digest: b"a digest" if digest in mine else None, complete=True)
        assert node.background is not None
        while node.background.report():
            pass
        assert all(node.cache.has(digest) for digest in mine)
        assert not any(node.cache.has(sha256(raw)) for raw in chunks[15:])
    finally:
        node.close()


def test_a_chain_that_is_closed_has_nothing_more_brought(tmp_path: Path) -> None:
    """As it is when its layer is unmounted, or read from other places from now on."""
    chunks = some_chunks(4, size=20_000)
    place, blob, _ = make_pack(chunks)
    reader = MemoryBlobs()
    reader.add(blob)
    node = Node(tmp_path, background=BackgroundPolicy(quiet=1e9))
    try:
        made = [node.chain([place], [reader], "layer", lambda digest: b"a digest", complete=True) for _ in range(2)]
        assert node.background is not None
        made[0].close()
        assert list(node.background.report()) == ["layer"]
        made[1].close()
        assert node.background.report() == {}
        assert made[1].get(refs(chunks)) == chunks, "a read that was under way"
    finally:
        node.close()
