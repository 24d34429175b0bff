"""Chunks in memory."""

from __future__ import annotations

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
