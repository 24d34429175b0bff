"""The whole chain as a worker has it: its order, its traffic, and how it heals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.chunkstore.base import ChunkCorruptError
from snapshotter.chunkstore.chain import Node, layout_chain, packs_chain
from snapshotter.chunkstore.stats import Count, Stats
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.pack import HEADER
from tests.support.chunks import MemoryBlobs, at_once, make_pack, refs, some_chunks

CHUNKS = some_chunks(30)
PLACE, PACK, ENTRIES = make_pack(CHUNKS)


@pytest.fixture
def registry() -> MemoryBlobs:
    made = MemoryBlobs("registry:5000/image")
    made.add(PACK)
    return made


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.close()


def test_the_order_can_be_read_from_the_name(node: Node, registry: MemoryBlobs, tmp_path: Path) -> None:
    mirror = MemoryBlobs("mirror/image")
    assert node.chain([PLACE], [mirror, registry]).name == (
        f"recent → cache({tmp_path}/chunks) → single-flight → retry(6) →"
        " fallback(verify(packs(mirror/image)), verify(packs(registry:5000/image)))"
    )


def test_nothing_is_read_until_a_chunk_is(node: Node, registry: MemoryBlobs) -> None:
    node.chain([PLACE], [registry])
    assert registry.asked == []


def test_two_layers_with_the_same_chunks_fetch_them_once(node: Node, registry: MemoryBlobs) -> None:
    one, two = node.chain([PLACE], [registry]), node.chain([PLACE], [registry])
    answers = at_once([lambda chain=chain: chain.get(refs(CHUNKS)) for chain in (one, two, one, two)])  # type: ignore[misc]
    assert answers == [CHUNKS] * 4
    data = [(offset, length) for _, offset, length in registry.asked if offset < PLACE.index_offset]
    assert sum(length for _, length in data) == PLACE.index_offset - len(HEADER)


def test_after_a_restart_everything_is_local_and_the_registry_not_needed(tmp_path: Path, registry: MemoryBlobs) -> None:
    first = Node(tmp_path)
    first.chain([PLACE], [registry]).get(refs(CHUNKS))
    first.close()
    second = Node(tmp_path)
    chain = second.chain([PLACE], [])
    assert chain.get(refs(CHUNKS)) == CHUNKS
    assert all(chain.has(ref.digest) for ref in refs(CHUNKS))
    second.close()
    assert second.stats.snapshot()[Count.HITS] == {"": len(CHUNKS)}


def test_a_chunk_that_is_corrupt_in_a_mirror_comes_from_the_registry(node: Node, registry: MemoryBlobs) -> None:
    mirror = MemoryBlobs("mirror/image")
    mirror.add(PACK)
    mirror.flip(PLACE.pack, ENTRIES[3].offset + 7)
    assert node.chain([PLACE], [mirror, registry]).get(refs(CHUNKS[:8])) == CHUNKS[:8]
    assert node.stats.snapshot()[Count.CORRUPT] == {"packs(mirror/image)": 1}
    assert node.stats.snapshot()[Count.BYTES]["registry:5000/image"] < PLACE.index_offset


def test_a_transfer_that_was_garbled_once_heals_itself(node: Node, registry: MemoryBlobs) -> None:
    chain = node.chain([PLACE], [registry])
    node.fetch_indexes([PLACE], [registry])
    registry.flip(PLACE.pack, ENTRIES[3].offset + 7)

    def mend_after_the_first(digest: Digest, offset: int, length: int) -> None:
        if len(registry.asked) > 2:
            registry.blobs[PLACE.pack] = PACK

    registry.before = mend_after_the_first
    assert chain.get(refs(CHUNKS[3:4])) == CHUNKS[3:4]
    assert node.stats.total(Count.RETRIES) == 1


def test_in_a_damaged_pack_what_is_not_damaged_can_be_read(node: Node, registry: MemoryBlobs) -> None:
    registry.flip(PLACE.pack, ENTRIES[3].offset + 7)
    chain = node.chain([PLACE], [registry])
    with pytest.raises(ChunkCorruptError, match="registry:5000/image") as caught:
        chain.get(refs(CHUNKS))
    assert caught.value.digest == sha256(CHUNKS[3])
    before = len(registry.asked)
    rest = CHUNKS[:3] + CHUNKS[4:]
    assert chain.get(refs(rest)) == rest
    assert len(registry.asked) == before  # what was good of the failed read has been kept


def test_a_local_layout_is_read_by_pack_or_by_blob() -> None:
    layout = MemoryBlobs("oci:/srv/images")
    layout.add(PACK)
    for raw in CHUNKS:
        layout.add(raw)
    packed = packs_chain([PLACE], layout, Stats())
    loose = layout_chain(layout, lambda digest: len(layout.blobs[digest]) if digest in layout.blobs else None, Stats())
    assert packed.get(refs(CHUNKS)) == loose.get(refs(CHUNKS)) == CHUNKS
    assert packed.name == "recent → single-flight → verify(packs(oci:/srv/images))"
    assert loose.name == "recent → single-flight → verify(blobs(oci:/srv/images))"
