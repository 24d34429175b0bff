"""How much of a layer is local."""

from __future__ import annotations

from snapshotter.chunkstore.coverage import Coverage, cover
from snapshotter.format.digest import sha256
from snapshotter.format.pack import PackIndex
from tests.support.chunks import make_pack, some_chunks

CHUNKS = some_chunks(4)


def test_local_chunks_are_counted_with_what_they_take_in_packs_and_on_disk() -> None:
    place, blob, entries = make_pack(CHUNKS[:3])
    index = PackIndex.parse(blob[place.index_offset : place.index_offset + place.index_length], place.index_offset)
    local = {sha256(CHUNKS[0]): 4096, sha256(CHUNKS[3]): 8192}
    found = cover([sha256(raw) for raw in CHUNKS], [index], local.get)
    stored = sum(entry.stored_length for entry in entries)
    # the fourth is in no index that is here: it counts as a chunk, its stored size is not known
    assert found == Coverage(chunks=4, local=2, stored=stored, stored_local=entries[0].stored_length, disk=4096 + 8192)
    assert found.ratio == 0.5


def test_a_chunk_that_is_named_twice_counts_once() -> None:
    found = cover([sha256(CHUNKS[0])] * 2, [], lambda digest: 1)
    assert found.chunks == found.local == 1


def test_a_layer_without_chunks_is_all_here() -> None:
    assert cover([], [], lambda digest: None).ratio == 1
