"""The cap of the cache."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapshotter.chunkstore import chunkfiles
from snapshotter.chunkstore.base import ChunkRef
from snapshotter.chunkstore.cache import CachedStore, ChunkCache
from snapshotter.chunkstore.chain import Node
from snapshotter.chunkstore.eviction import Evictor
from snapshotter.chunkstore.prefetch import Start
from snapshotter.chunkstore.reserve import Cap
from snapshotter.chunkstore.stats import Count, Stats
from snapshotter.format.digest import sha256
from tests.support.chunks import MemoryBlobs, StubStore, make_pack, refs, some_chunks

CHUNKS = some_chunks(20, size=5000)
BLOCKS = 8192
"""What a chunk of 5000 bytes takes on disk."""


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A cache directory with all chunks, used in their order: the first longest ago."""
    cache = ChunkCache(tmp_path, stats=Stats())
    for raw in CHUNKS:
        cache.put(sha256(raw), raw)
    cache.close()
    for number, raw in enumerate(CHUNKS):
        os.utime(cache.directory.file(sha256(raw)), (1000 + number, 0))
    return cache.directory.path


def left(path: Path) -> list[int]:
    return [number for number, raw in enumerate(CHUNKS) if (path / sha256(raw).hex()[:2] / sha256(raw).hex()).exists()]


def test_below_the_cap_nothing_is_removed(filled: Path) -> None:
    assert Evictor(filled, Cap(20 * BLOCKS), Stats()).sweep() == 20 * BLOCKS
    assert left(filled) == list(range(20))


@pytest.mark.parametrize("batch", [1, 3, 4096])
def test_what_was_used_longest_ago_goes_first_until_a_tenth_below_the_cap(filled: Path, batch: int) -> None:
    stats = Stats()
    assert Evictor(filled, Cap(10 * BLOCKS), stats, batch=batch).sweep() == 9 * BLOCKS
    assert left(filled) == list(range(11, 20))
    assert stats.total(Count.EVICTED_BYTES) == stats.total(Count.EVICTIONS) * BLOCKS


class Watched(Stats):
    """Counters that tell when the first file has been evicted."""

    def __init__(self) -> None:
        super().__init__()
        self.evicted = threading.Event()

    def add(self, what: Count, amount: int = 1, source: str = "") -> None:
        super().add(what, amount, source)
        if what is Count.EVICTIONS:
            self.evicted.set()


def test_a_cache_over_its_cap_is_cut_in_the_background_when_it_is_opened(tmp_path: Path, filled: Path) -> None:
    stats = Watched()
    cache = ChunkCache(tmp_path, stats=stats, cap=Cap(10 * BLOCKS))
    assert stats.evicted.wait(10)
    assert cache.peek(sha256(CHUNKS[0])) is None
    assert cache.peek(sha256(CHUNKS[19])) == CHUNKS[19]
    cache.close()
    cache.close()


def test_a_cache_that_grows_over_its_cap_is_cut(tmp_path: Path) -> None:
    stats = Watched()
    cache = ChunkCache(tmp_path, stats=stats, cap=Cap(5 * BLOCKS))
    for raw in CHUNKS:
        cache.put(sha256(raw), raw)
    assert stats.evicted.wait(10)
    cache.close()


def test_an_evicted_chunk_that_this_process_knew_is_kept_again_when_it_comes_back(tmp_path: Path) -> None:
    cache = ChunkCache(tmp_path, stats=Stats())
    cache.put(sha256(CHUNKS[0]), CHUNKS[0])
    cache.flush()
    Evictor(cache.directory.path, Cap(1), Stats()).sweep()
    assert not cache.has(sha256(CHUNKS[0]))
    cache.put(sha256(CHUNKS[0]), CHUNKS[0])
    cache.close()
    assert left(cache.directory.path) == [0]


# The reserve: what one process's containers read, another process's eviction leaves alone.


def test_a_pull_of_any_size_does_not_evict_what_a_container_has_just_read(tmp_path: Path) -> None:
    """The container's chunks and the image pulled after them go through two processes' chains; a third one evicts."""
    mine, pulled = some_chunks(4, seed=1, size=5000), some_chunks(30, seed=2, size=5000)
    reader = MemoryBlobs()
    places = []
    for chunks in (mine, pulled):
        place, blob, _ = make_pack(chunks)
        reader.add(blob)
        places.append(place)
    container, puller = Node(tmp_path), Node(tmp_path)
    try:
        assert container.chain(places[:1], [reader]).get(refs(mine)) == mine
        container.cache.flush()
        for raw in mine:  # an hour ago, long before the pull
            _age(container.cache.directory.file(sha256(raw)), 3600)
        puller.bring(places[1:], [reader], Start("layer", profile=places[1].pack))
        puller.settle()
        puller.cache.flush()
        stats = Stats()
        cap = Cap(16 * BLOCKS)
        assert Evictor(container.cache.directory.path, cap, stats).sweep() <= cap.goal
        assert all(puller.cache.has(sha256(raw)) for raw in mine)
        assert stats.total(Count.EVICTED_RECENT_BYTES) == 0
        without = Cap(5 * BLOCKS, reserve=0.0)
        Evictor(container.cache.directory.path, without, stats).sweep()
        assert not any(puller.cache.has(sha256(raw)) for raw in mine), "it is the reserve that kept them"
        assert stats.total(Count.EVICTED_RECENT_BYTES) == 4 * BLOCKS
    finally:
        container.close()
        puller.close()


def _age(path: str, seconds: float) -> None:
    """Set a file's times back."""
    status = os.stat(path)
    os.utime(path, (status.st_atime - seconds, status.st_mtime - seconds if status.st_mtime else 0))


@pytest.fixture
def brought(tmp_path: Path) -> Iterator[ChunkCache]:
    """A cache with one chunk that came ahead of readers."""
    cache = ChunkCache(tmp_path, stats=Stats())
    cache.put(sha256(CHUNKS[0]), CHUNKS[0], wanted=False)
    cache.flush()
    yield cache
    cache.close()


def was_read(cache: ChunkCache) -> bool:
    """Whether anybody who looks at the directory takes the first chunk for one that a container has read."""
    return cache.directory.usage().recent > 0


def test_what_comes_unasked_is_not_read(brought: ChunkCache) -> None:
    assert brought.has(sha256(CHUNKS[0]))
    assert not was_read(brought)


READS: list[Callable[[ChunkCache], object]] = [
    lambda cache: cache.peek(sha256(CHUNKS[0])),
    lambda cache: cache.at_hand(sha256(CHUNKS[0])),
    lambda cache: cache.put(sha256(CHUNKS[0]), CHUNKS[0]),  # the chunk came to a reader that waited for it on its way
    lambda cache: CachedStore(cache, StubStore()).get([ChunkRef(sha256(CHUNKS[0]))]),
]


@pytest.mark.parametrize("read", READS, ids=["from the disk", "at hand", "on its way", "through the chain"])
def test_a_read_is_noted_however_it_is_answered(brought: ChunkCache, read: Callable[[ChunkCache], object]) -> None:
    read(brought)
    assert was_read(brought)
    assert brought.peek(sha256(CHUNKS[0])) == CHUNKS[0]


@pytest.mark.parametrize("read", READS, ids=["from the disk", "at hand", "on its way", "through the chain"])
def test_so_is_one_before_the_chunk_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[ChunkCache], object]
) -> None:
    cache = ChunkCache(tmp_path, stats=Stats())
    go_on, real = threading.Event(), chunkfiles.write

    def slow(path: str, raw: bytes) -> None:
        assert go_on.wait(10)
        real(path, raw)

    monkeypatch.setattr(chunkfiles, "write", slow)
    cache.put(sha256(CHUNKS[1]), CHUNKS[1], wanted=False)  # the writer is busy with this one
    cache.put(sha256(CHUNKS[0]), CHUNKS[0], wanted=False)
    read(cache)
    go_on.set()
    cache.flush()
    assert was_read(cache)
    cache.close()
