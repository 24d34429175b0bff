"""Chunks that are encoded in other processes are what they would be in this one, in the order in which they came."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from snapshotter.build.chunk import CutChunk
from snapshotter.build.slots import BATCH_BYTES, BATCH_CHUNKS
from snapshotter.build.spool import ChunkSpool
from snapshotter.build.spoolencoder import SpoolEncoder
from snapshotter.errors import UnavailableError
from snapshotter.format.compression import encode_chunk
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.verity import verity_digest
from tests.support.samples import noise

LEVEL = 3


@pytest.fixture
def spool() -> Iterator[ChunkSpool]:
    made = ChunkSpool()
    yield made
    made.close()


def chunks(count: int, size: int) -> list[bytes]:
    """Every third one compressible, every seventh one the same."""
    return [
        b"same" * (size // 4) if number % 7 == 0 else b"%d " % number * (size // 8) if number % 3 == 0 else noise(size, number)
        for number in range(count)
    ]


def encode(spool: ChunkSpool, raws: list[bytes], known: tuple[Digest, ...] = (), workers: int = 2) -> list[CutChunk]:
    run: list[CutChunk] = []
    with SpoolEncoder(spool, LEVEL, known, workers=workers, chunk_max=max(map(len, raws))) as encoder:
        for raw in raws:
            encoder.put(raw, run)
        encoder.flush()
    return run


@pytest.mark.parametrize(
    ("count", "size", "workers"),
    [(5, 1000, 2), (200, 60_000, 1), (200, 60_000, 3), (3 * BATCH_CHUNKS + 5, 256, 2), (5, 3 * BATCH_BYTES, 2)],
    ids=["a part of a batch", "one process", "three", "many small ones", "larger than a batch"],
)
def test_every_chunk_is_kept_once_in_the_order_of_coming(spool: ChunkSpool, count: int, size: int, workers: int) -> None:
    raws = chunks(count, size)
    assert encode(spool, raws, workers=workers) == [CutChunk(sha256(raw), len(raw)) for raw in raws]
    distinct = {sha256(raw): raw for raw in raws}
    assert list(spool.digests) == list(distinct)
    end = 0
    for digest, raw in distinct.items():
        place = spool.place(digest)
        assert place is not None
        assert spool.verity(digest) == verity_digest(raw)
        assert (place.codec, spool.read(place)) == encode_chunk(raw, LEVEL)
        assert (place.offset, place.raw_length) == (end, len(raw))
        end += place.stored_length


@pytest.mark.parametrize("count", [4, 60])
def test_of_known_chunks_only_the_fs_verity_digest_is_kept(spool: ChunkSpool, count: int) -> None:
    raws = [noise(60_000, number) for number in range(count)]
    known = tuple(map(sha256, raws[::2]))
    encode(spool, raws, known)
    assert list(spool.digests) == list(map(sha256, raws))
    assert [spool.place(digest) is not None for digest in spool.digests] == [bool(number % 2) for number in range(count)]
    assert [spool.verity(digest) for digest in spool.digests] == list(map(verity_digest, raws))


def test_it_can_be_flushed_again_and_again(spool: ChunkSpool) -> None:
    raws = chunks(60, 60_000)
    runs: list[list[CutChunk]] = []
    with SpoolEncoder(spool, LEVEL, workers=2, chunk_max=60_000) as encoder:
        for start in range(0, 60, 7):
            run: list[CutChunk] = []
            for raw in raws[start : start + 7]:
                encoder.put(raw, run)
            encoder.flush()
            runs.append(run)
    assert [chunk.digest for run in runs for chunk in run] == list(map(sha256, raws))


def test_a_process_that_ends_is_an_error_and_no_hang(spool: ChunkSpool) -> None:
    children = set(_children())
    with SpoolEncoder(spool, LEVEL, workers=2, chunk_max=60_000) as encoder:

        def put(count: int) -> None:
            for raw in chunks(count, 60_000):
                encoder.put(raw, [])
            encoder.flush()

        put(120)
        for process in set(_children()) - children:
            os.kill(process, signal.SIGKILL)
        with pytest.raises(UnavailableError, match="has ended"):
            put(400)
    assert set(_children()) == children


def _children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return [int(number) for number in file.read().split()]
