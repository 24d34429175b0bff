"""What is noted of reads."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from snapshotter.chunkstore.base import ChunkMissingError, ChunkRef
from snapshotter.chunkstore.reads import BUCKETS, HUNG_AFTER, Observed, Reads
from snapshotter.chunkstore.recent import RecentChunks, RecentStore
from snapshotter.format.digest import sha256, to_text
from tests.support.chunks import StubStore, refs, some_chunks

CHUNKS = some_chunks(3)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_read_is_counted_in_the_bucket_of_its_latency() -> None:
    clock = Clock()
    reads = Reads(clock)
    number = reads.begin("read", "layer", sha256(CHUNKS[0]))
    clock.now += 0.02
    reads.end("read", number, failed=False)
    report = reads.report()["read"]
    assert report["counts"][BUCKETS.index(0.025)] == 1
    assert sum(report["counts"]) == 1
    assert report["seconds"] == pytest.approx(0.02)


def test_a_read_longer_than_every_bucket_is_counted_behind_the_last() -> None:
    clock = Clock()
    reads = Reads(clock)
    number = reads.begin("fetch", "layer", sha256(CHUNKS[0]))
    clock.now += BUCKETS[-1] + 1
    reads.end("fetch", number, failed=True)
    report = reads.report()["fetch"]
    assert report["counts"][-1] == 1
    assert report["failed"] == 1


def test_a_read_that_waits_too_long_is_hung_and_named() -> None:
    clock = Clock()
    reads = Reads(clock)
    number = reads.begin("fetch", "sha256:aa", sha256(CHUNKS[0]))
    clock.now += HUNG_AFTER
    assert reads.report()["fetch"]["hung"] == 0
    clock.now += 1
    report = reads.report()
    assert report["fetch"]["hung"] == report["fetch"]["in_flight"] == 1
    assert report["waiting"] == [{"layer": "sha256:aa", "chunk": to_text(sha256(CHUNKS[0])), "seconds": HUNG_AFTER + 1}]
    reads.end("fetch", number, failed=False)
    report = reads.report()
    assert report["waiting"] == []
    assert report["fetch"]["hung"] == report["fetch"]["in_flight"] == 0


def test_the_report_names_a_bounded_number_of_waiting_reads() -> None:
    reads = Reads()
    for number in range(1000):
        reads.begin("fetch", f"layer {number}", sha256(CHUNKS[0]))
    report = reads.report()
    assert report["fetch"]["in_flight"] == 1000
    assert len(report["waiting"]) < 100
    assert report["waiting"][0]["layer"] == "layer 0"


def test_a_read_that_fails_is_over() -> None:
    reads = Reads()
    store = Observed(StubStore(CHUNKS[:1]), reads, "read", "layer")
    assert store.get(refs(CHUNKS[:1])) == CHUNKS[:1]
    assert not reads.busy
    with pytest.raises(ChunkMissingError):
        store.get([ChunkRef(sha256(b"another"))])
    report = reads.report()["read"]
    assert report["in_flight"] == 0
    assert report["failed"] == 1
    assert sum(report["counts"]) == 2


def test_a_read_from_memory_is_counted_and_waits_for_nothing() -> None:
    reads = Reads()
    store = Observed(RecentStore(RecentChunks(), StubStore(CHUNKS)), reads, "read", "layer")
    assert store.at_hand(refs(CHUNKS)) is None
    assert sum(reads.report()["read"]["counts"]) == 0
    store.get(refs(CHUNKS))
    assert store.at_hand(refs(CHUNKS)) == CHUNKS
    assert sum(reads.report()["read"]["counts"]) == 2
    assert Observed(StubStore(CHUNKS), reads, "read", "layer").at_hand(refs(CHUNKS)) is None


class Local(StubStore):
    """Has all of its chunks on this machine."""

    def at_hand(self, wanted: Sequence[ChunkRef]) -> list[bytes] | None:
        return None

    def local(self, wanted: Sequence[ChunkRef]) -> list[bytes] | None:
        self.before(wanted)
        return [self.chunks[ref.digest] for ref in wanted] if self.chunks else None

    def part(self, ref: ChunkRef, offset: int, length: int) -> bytes | None:
        return self.chunks[ref.digest][offset : offset + length] if self.chunks else None


def test_a_part_is_counted_if_it_was_there() -> None:
    reads = Reads()
    inner = Local(CHUNKS)
    store = Observed(inner, reads, "read", "layer")
    assert store.part(refs(CHUNKS)[0], 3, 4) == CHUNKS[0][3:7]
    inner.chunks.clear()
    assert store.part(refs(CHUNKS)[0], 3, 4) is None
    assert sum(reads.report()["read"]["counts"]) == 1
    assert Observed(StubStore(CHUNKS), reads, "read", "layer").part(refs(CHUNKS)[0], 3, 4) is None


def test_a_local_read_is_under_way_until_its_disk_answers_and_counted_if_it_had_all() -> None:
    reads = Reads()
    inner = Local(CHUNKS)
    store = Observed(inner, reads, "read", "layer")
    seen: list[int] = []
    inner.before = lambda wanted: seen.append(reads.report()["read"]["in_flight"])
    assert store.local(refs(CHUNKS)) == CHUNKS
    assert sum(reads.report()["read"]["counts"]) == 1
    inner.chunks.clear()
    assert store.local(refs(CHUNKS)) is None
    report = reads.report()["read"]
    assert (seen, report["in_flight"], sum(report["counts"])) == ([1, 1], 0, 1)
    assert Observed(StubStore(CHUNKS), reads, "read", "layer").local(refs(CHUNKS)) is None
