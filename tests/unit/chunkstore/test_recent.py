"""Chunks in memory."""

from __future__ import annotations

from collections.abc import Sequence

from snapshotter.chunkstore.base import ChunkRef
from snapshotter.chunkstore.recent import RecentChunks, RecentStore
from tests.support.chunks import StubStore, refs, some_chunks

CHUNKS = some_chunks(6, size=1000)
WANTED = refs(CHUNKS)


def test_memory_is_bounded_and_the_chunk_used_longest_ago_goes_first() -> None:
    stub = StubStore(CHUNKS)
    store = RecentStore(RecentChunks(3 * 1010), stub)
    store.get(WANTED[:3])
    store.get(WANTED[:1])
    store.get(WANTED[3:4])  # drops the second
    store.get([WANTED[0], WANTED[2], WANTED[3]])
    assert len(stub.asked) == 2
    store.get(WANTED[1:2])
    assert len(stub.asked) == 3


def test_a_chunk_larger_than_all_of_it_is_answered_but_not_held() -> None:
    stub = StubStore(CHUNKS)
    store = RecentStore(RecentChunks(10), stub)
    assert store.get(WANTED[:1]) == store.get(WANTED[:1]) == CHUNKS[:1]
    assert len(stub.asked) == 2


class Quick(StubStore):
    """Has some chunks at hand."""

    def at_hand(self, wanted: Sequence[ChunkRef]) -> list[bytes] | None:
        """All that it has, or nothing."""
        return [self.chunks[ref.digest] for ref in wanted] if all(ref.digest in self.chunks for ref in wanted) else None

    local = at_hand

    def part(self, ref: ChunkRef, offset: int, length: int) -> bytes | None:
        """Some of a chunk, if it has it."""
        raw = self.chunks.get(ref.digest, b"")
        return raw[offset : offset + length] or None


def test_a_part_is_that_of_a_chunk_in_memory_or_the_next_member_s_and_not_held() -> None:
    inner = Quick(CHUNKS[:2])
    store = RecentStore(RecentChunks(), inner)
    store.get(WANTED[:1])
    assert [store.part(ref, 10, 20) for ref in WANTED[:3]] == [CHUNKS[0][10:30], CHUNKS[1][10:30], None]
    inner.chunks.clear()
    assert [store.part(ref, 10, 20) for ref in WANTED[:2]] == [CHUNKS[0][10:30], None]
    assert store.part(WANTED[0], len(CHUNKS[0]) - 1, 2) is None, "the chunk is not so long"
    assert RecentStore(RecentChunks(), StubStore(CHUNKS)).part(WANTED[0], 0, 1) is None


def test_at_hand_is_what_memory_and_the_next_member_have_together() -> None:
    inner = Quick(CHUNKS[:3])
    store = RecentStore(RecentChunks(), inner)
    assert store.at_hand(WANTED[:1]) == CHUNKS[:1]
    assert store.at_hand([WANTED[1], WANTED[0], WANTED[1]]) == [CHUNKS[1], CHUNKS[0], CHUNKS[1]]
    assert store.at_hand(WANTED[2:4]) is None
    inner.chunks.clear()
    assert store.at_hand(WANTED[:3]) == CHUNKS[:3], "the third was found on the way"
    assert store.at_hand(WANTED[3:4]) is None
    assert inner.asked == []


def test_what_is_local_is_asked_for_once() -> None:
    inner = Quick(CHUNKS[:3])
    store = RecentStore(RecentChunks(), inner)
    assert store.local(WANTED[:4]) is None
    inner.chunks.clear()
    assert store.local(WANTED[:3]) == CHUNKS[:3], "all that was found before something was missing"
    assert RecentStore(RecentChunks(), StubStore(CHUNKS)).local(WANTED[:1]) is None


def test_nothing_but_memory_is_at_hand_before_a_member_that_waits() -> None:
    store = RecentStore(RecentChunks(), StubStore(CHUNKS))
    assert store.at_hand(WANTED[:1]) is None
    store.get(WANTED[:1])
    assert store.at_hand(WANTED[:1]) == CHUNKS[:1]


def test_of_a_long_read_what_its_neighbours_share_is_held() -> None:
    inner = Quick(CHUNKS)
    store = RecentStore(RecentChunks(), inner)
    assert store.local(WANTED[:4]) == CHUNKS[:4]
    inner.chunks.clear()
    assert [store.local([ref]) for ref in WANTED[:4]] == [CHUNKS[:1], None, None, CHUNKS[3:4]]
