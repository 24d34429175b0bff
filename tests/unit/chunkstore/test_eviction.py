"""The cap of the cache."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from snapshotter.chunkstore import eviction
from snapshotter.chunkstore.cache import ChunkCache
from snapshotter.chunkstore.eviction import Evictor
from snapshotter.chunkstore.stats import Count, Stats
from snapshotter.format.digest import sha256
from tests.support.chunks import some_chunks

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
        os.utime(cache.directory.file(sha256(raw)), (1000 + number, 1000))
    return cache.directory.path


def left(path: Path) -> list[int]:
    return [number for number, raw in enumerate(CHUNKS) if (path / sha256(raw).hex()[:2] / sha256(raw).hex()).exists()]


def test_below_the_cap_nothing_is_removed(filled: Path) -> None:
    assert Evictor(filled, 20 * BLOCKS, Stats()).sweep() == 20 * BLOCKS
    assert left(filled) == list(range(20))


@pytest.mark.parametrize("batch", [1, 3, 4096])
def test_what_was_used_longest_ago_goes_first_until_a_tenth_below_the_cap(
    filled: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(eviction, "BATCH", batch)
    stats = Stats()
    assert Evictor(filled, 10 * BLOCKS, stats).sweep() <= 10 * BLOCKS
    assert 9 <= len(left(filled)) <= 10
    assert left(filled) == list(range(20))[-len(left(filled)) :]
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
    cache = ChunkCache(tmp_path, stats=stats, max_bytes=10 * BLOCKS)
    assert stats.evicted.wait(10)
    assert cache.peek(sha256(CHUNKS[0])) is None
    assert cache.peek(sha256(CHUNKS[19])) == CHUNKS[19]
    cache.close()
    cache.close()


def test_a_cache_that_grows_over_its_cap_is_cut(tmp_path: Path) -> None:
    stats = Watched()
    cache = ChunkCache(tmp_path, stats=stats, max_bytes=5 * BLOCKS)
    for raw in CHUNKS:
        cache.put(sha256(raw), raw)
    assert stats.evicted.wait(10)
    cache.close()


def test_an_evicted_chunk_that_this_process_knew_is_kept_again_when_it_comes_back(tmp_path: Path) -> None:
    cache = ChunkCache(tmp_path, stats=Stats())
    cache.put(sha256(CHUNKS[0]), CHUNKS[0])
    cache.flush()
    Evictor(cache.directory.path, 1, Stats()).sweep()
    assert not cache.has(sha256(CHUNKS[0]))
    cache.put(sha256(CHUNKS[0]), CHUNKS[0])
    cache.close()
    assert left(cache.directory.path) == [0]
