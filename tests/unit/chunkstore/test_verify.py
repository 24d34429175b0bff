"""Verification: counts, names, and what becomes of the good part of a bad answer."""

from __future__ import annotations

import pytest

from snapshotter.chunkstore.base import ChunkCorruptError
from snapshotter.chunkstore.stats import Count, Stats
from snapshotter.chunkstore.verify import Verify
from tests.support.chunks import MemoryLocal, StubStore, refs, some_chunks

CHUNKS = some_chunks(3)
WANTED = refs(CHUNKS)


def test_a_wrong_chunk_is_named_with_its_source_logged_and_counted_and_the_others_are_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stub, stats, local = StubStore(CHUNKS, "registry:5000/image"), Stats(), MemoryLocal()
    stub.chunks[WANTED[1].digest] = b"something else"
    with pytest.raises(ChunkCorruptError, match="from registry:5000/image is corrupt"):
        Verify(stub, stats=stats, local=local).get(WANTED)
    assert local.chunks == {WANTED[0].digest: CHUNKS[0], WANTED[2].digest: CHUNKS[2]}
    assert stats.snapshot()[Count.CORRUPT] == {"registry:5000/image": 1}
    assert WANTED[1].digest.hex() in caplog.text


def test_what_the_source_finds_corrupt_itself_is_logged_and_counted_too(caplog: pytest.LogCaptureFixture) -> None:
    stub, stats = StubStore(CHUNKS, "there"), Stats()
    stub.failures = [ChunkCorruptError(WANTED[0].digest, "there", "garbled")]
    with pytest.raises(ChunkCorruptError):
        Verify(stub, stats=stats).get(WANTED)
    assert stats.total(Count.CORRUPT) == 1
    assert "garbled" in caplog.text
