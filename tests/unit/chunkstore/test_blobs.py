"""Upstream's layout: a blob a chunk, raw or in zstd's seekable form."""

from __future__ import annotations

import pytest

from snapshotter.chunkstore.base import ChunkCorruptError, ChunkRef
from snapshotter.chunkstore.blobs import BlobStore
from snapshotter.chunkstore.stats import Count, Stats
from snapshotter.chunkstore.verify import Verify
from snapshotter.format.compression import encode_seekable
from snapshotter.format.digest import Digest
from snapshotter.format.model import CHUNK_MAX
from tests.support.chunks import MemoryBlobs

RAW = b"PuzzleFS " * 5000


def store(reader: MemoryBlobs) -> Verify:
    def size_of(digest: Digest) -> int | None:
        return len(reader.blobs[digest]) if digest in reader.blobs else None

    return Verify(BlobStore(reader, size_of, stats=Stats(), on_node=True), stats=Stats())


def stored() -> bytes:
    encoded = encode_seekable(RAW)
    assert encoded is not None
    return encoded


def test_a_compressed_chunk_is_named_by_its_stored_bytes_and_answered_raw() -> None:
    reader = MemoryBlobs()
    ref = ChunkRef(reader.add(stored()), compressed=True)
    assert store(reader).get([ref, ref]) == [RAW, RAW]
    assert store(reader).has(ref.digest)


def test_a_chunk_of_a_compressed_image_that_was_stored_raw_is_read_raw() -> None:
    reader = MemoryBlobs()
    assert store(reader).get([ChunkRef(reader.add(RAW))]) == [RAW]


@pytest.mark.parametrize("at", [0, 100, -1])
def test_a_compressed_chunk_is_checked_before_it_is_decoded(at: int) -> None:
    reader = MemoryBlobs("oci:/srv/images")
    digest = reader.add(stored())
    reader.flip(digest, at)
    with pytest.raises(ChunkCorruptError, match="oci:/srv/images is corrupt: the sha256 of the stored bytes is another"):
        store(reader).get([ChunkRef(digest, compressed=True)])


def test_a_blob_that_is_what_its_name_says_but_no_zstd_is_corrupt() -> None:
    reader = MemoryBlobs()
    with pytest.raises(ChunkCorruptError):
        store(reader).get([ChunkRef(reader.add(RAW), compressed=True)])


def test_a_blob_larger_than_any_chunk_is_not_read() -> None:
    reader = MemoryBlobs()
    digest = reader.add(b"x")
    huge = BlobStore(reader, lambda digest: 2 * CHUNK_MAX, stats=Stats())
    with pytest.raises(ChunkCorruptError, match="its blob has"):
        huge.get([ChunkRef(digest)])
    assert reader.asked == []


def test_bytes_and_requests_are_counted_by_source() -> None:
    reader, stats = MemoryBlobs("here"), Stats()
    digest = reader.add(RAW)
    BlobStore(reader, lambda digest: len(RAW), stats=stats).get([ChunkRef(digest)])
    assert stats.snapshot()[Count.BYTES] == {"here": len(RAW)}
    assert stats.snapshot()[Count.REQUESTS] == {"here": 1}
