"""What is brought unasked comes from any source that has it, and its failure is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.chunkstore.base import ChunkCorruptError, ChunkMissingError, SourceUnavailableError
from snapshotter.chunkstore.bringing import Bringing
from snapshotter.chunkstore.chain import Node
from snapshotter.chunkstore.health import Health
from snapshotter.chunkstore.packmap import PackMap
from snapshotter.chunkstore.packs import PackStore
from snapshotter.chunkstore.pool import FetchPool
from snapshotter.chunkstore.prefetch import Start
from snapshotter.chunkstore.stats import Stats
from snapshotter.chunkstore.verify import Verify
from snapshotter.errors import UnavailableError
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.pack import PackIndex
from tests.support.chunks import MemoryBlobs, MemoryLocal, make_pack, some_chunks

CHUNKS = some_chunks(20)
DIGESTS = [sha256(raw) for raw in CHUNKS]
PLACE, PACK, ENTRIES = make_pack(CHUNKS)


def refuse(digest: Digest, offset: int, length: int) -> None:
    raise UnavailableError("the network is down")


class Sources:
    """Two sources of a pack, and the cache into which it is brought; nothing that lies between chunks is fetched along."""

    def __init__(self, pool: FetchPool) -> None:
        self.first, self.second, self.local = MemoryBlobs("first/image"), MemoryBlobs("second/image"), MemoryLocal()
        for source in (self.first, self.second):
            source.add(PACK)
        index = PackIndex.parse(PACK[PLACE.index_offset :][: PLACE.index_length], PLACE.index_offset)
        stats = Stats()
        stores = [
            PackStore([PackMap(PLACE.pack, lambda: index)], source, stats=stats, pool=pool, local=self.local)
            for source in (self.first, self.second)
        ]
        self.bringing = Bringing([(Verify(store, stats=stats), store) for store in stores], Health())


@pytest.fixture
def sources() -> Iterator[Sources]:
    pool = FetchPool()
    yield Sources(pool)
    pool.close()


def test_one_source_suffices(sources: Sources) -> None:
    sources.bringing.bring(DIGESTS, 4000)
    assert set(sources.local.chunks) == set(DIGESTS)
    assert sources.second.asked == []


def test_what_the_first_does_not_give_the_second_does_and_only_that(sources: Sources) -> None:
    sources.first.flip(PLACE.pack, ENTRIES[3].offset + 7)
    sources.bringing.bring(DIGESTS, 4000)
    assert set(sources.local.chunks) == set(DIGESTS)
    assert sources.second.asked == [(PLACE.pack, ENTRIES[3].offset, ENTRIES[3].stored_length)]


def test_a_source_that_is_gone_is_asked_last_the_next_time(sources: Sources) -> None:
    sources.first.before = refuse
    sources.bringing.bring(DIGESTS[:5], 1 << 20)
    asked = len(sources.first.asked)
    sources.bringing.bring(DIGESTS[5:], 1 << 20)
    assert set(sources.local.chunks) == set(DIGESTS)
    assert len(sources.first.asked) == asked


def test_what_does_not_come_is_an_error_and_the_rest_is_there(sources: Sources) -> None:
    for source in (sources.first, sources.second):
        source.flip(PLACE.pack, ENTRIES[3].offset + 7)
    with pytest.raises(ChunkCorruptError):
        sources.bringing.bring(DIGESTS, 4000)
    assert set(sources.local.chunks) == set(DIGESTS) - {DIGESTS[3]}
    with pytest.raises(ChunkMissingError):
        sources.bringing.bring([*DIGESTS[:2], sha256(b"in no pack")], 4000)
    sources.local.chunks.clear()
    for source in (sources.first, sources.second):
        source.before = refuse
    with pytest.raises(SourceUnavailableError, match="network is down"):
        sources.bringing.bring(DIGESTS, 4000)


def test_a_start_is_fetched_while_the_first_source_is_gone(tmp_path: Path) -> None:
    """As a node does it: a profile is a pack that is fetched whole."""
    mirror, registry = MemoryBlobs("mirror/image"), MemoryBlobs("registry/image")
    mirror.before = refuse
    registry.add(PACK)
    node = Node(tmp_path)
    try:
        node.bring([PLACE], [mirror, registry], Start("layer", profile=PLACE.pack))
        node.settle()
        assert all(node.cache.has(digest) for digest in DIGESTS)
    finally:
        node.close()
