"""Chunks, packs and sources in memory, for tests of the chunk store."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from snapshotter.chunkstore.base import ChunkMissingError, ChunkRef
from snapshotter.errors import CorruptError, NotFoundError, PuzzlefsError
from snapshotter.format.annotations import PackPlace
from snapshotter.format.compression import encode_chunk
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.format.pack import HEADER, PackEntry, trailer

T = TypeVar("T")


def some_chunks(count: int, seed: int = 0, size: int = 2000) -> list[bytes]:
    """`count` different chunks of about `size` bytes, every other one compressible."""
    made = random.Random(seed)
    return [
        (made.randbytes(size) if number % 2 else made.randbytes(8) * (size // 8)) + number.to_bytes(4, "big") + bytes([seed])
        for number in range(count)
    ]


def refs(chunks: Sequence[bytes]) -> list[ChunkRef]:
    """What asks for `chunks`."""
    return [ChunkRef(sha256(raw)) for raw in chunks]


def make_pack(chunks: Sequence[bytes]) -> tuple[PackPlace, bytes, list[PackEntry]]:
    """A pack with `chunks` in their order: its place, its bytes, and where everything is."""
    body = bytearray(HEADER)
    entries = []
    for raw in chunks:
        codec, stored = encode_chunk(raw, 3)
        entries.append(PackEntry(sha256(raw), len(raw), len(body), len(stored), codec))
        body += stored
    tail, index_length = trailer(entries, len(body))
    blob = bytes(body) + tail
    return PackPlace(sha256(blob), len(body), index_length), blob, entries


class MemoryBlobs:
    """A `BlobReader` over a dict that logs what it is asked for and misbehaves through `before`."""

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self.blobs: dict[Digest, bytes] = {}
        self.asked: list[tuple[Digest, int, int]] = []
        self.before: Callable[[Digest, int, int], None] = lambda digest, offset, length: None
        self._lock = threading.Lock()

    def add(self, blob: bytes) -> Digest:
        digest = sha256(blob)
        self.blobs[digest] = blob
        return digest

    def flip(self, digest: Digest, offset: int) -> None:
        """Change one byte of a blob, under its old name."""
        blob = bytearray(self.blobs[digest])
        blob[offset] ^= 0xFF
        self.blobs[digest] = bytes(blob)

    def read_range(self, digest: Digest, offset: int, length: int) -> bytes:
        with self._lock:
            self.asked.append((digest, offset, length))
        self.before(digest, offset, length)
        if digest not in self.blobs:
            raise NotFoundError(f"no blob {digest.hex()} in {self.name}")
        data = self.blobs[digest][offset : offset + length]
        if len(data) != length:
            raise CorruptError("the blob ends early")
        return data


class RangedBlobs(MemoryBlobs):
    """A `RangesReader`: several ranges for one request, which is logged as its first; the last comes first, in blocks."""

    ranges_at_once = 8

    def read_ranges(self, digest: Digest, extents: Sequence[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
        self.read_range(digest, *extents[0])
        for offset, length in reversed(extents):
            for start in range(offset, offset + length, 1000):
                yield start, self.blobs[digest][start : min(start + 1000, offset + length)]


class StubStore:
    """A `ChunkStore` over a dict: counts and logs what it is asked for, and raises what `failures` holds, one per call."""

    def __init__(self, chunks: Sequence[bytes] = (), name: str = "stub") -> None:
        self.name = name
        self.chunks: dict[Digest, bytes] = {sha256(raw): raw for raw in chunks}
        self.failures: list[PuzzlefsError] = []
        self.asked: list[list[Digest]] = []
        self.before: Callable[[Sequence[ChunkRef]], None] = lambda wanted: None
        self.closed = 0
        self._lock = threading.Lock()

    def get(self, wanted: Sequence[ChunkRef]) -> list[bytes]:
        with self._lock:
            self.asked.append([ref.digest for ref in wanted])
            failure = self.failures.pop(0) if self.failures else None
        self.before(wanted)
        if failure is not None:
            raise failure
        missing = [ref.digest for ref in wanted if ref.digest not in self.chunks]
        if missing:
            raise ChunkMissingError(f"{self.name} lacks chunk {to_text(missing[0])}", missing)
        return [self.chunks[ref.digest] for ref in wanted]

    def has(self, digest: Digest) -> bool:
        return False

    def close(self) -> None:
        self.closed += 1


class MemoryLocal:
    """`LocalChunks` in a dict."""

    def __init__(self) -> None:
        self.chunks: dict[Digest, bytes] = {}

    def peek(self, digest: Digest) -> bytes | None:
        return self.chunks.get(digest)

    def has(self, digest: Digest) -> bool:
        return digest in self.chunks

    def put(self, digest: Digest, raw: bytes, *, wanted: bool = True) -> None:
        assert sha256(raw) == digest, "unverified bytes were to be kept"
        self.chunks[digest] = raw


def at_once(tasks: Sequence[Callable[[], T]]) -> list[T | BaseException]:
    """Run all `tasks` in threads that start together; what each returned or raised."""
    start = threading.Barrier(len(tasks))

    def run(task: Callable[[], T]) -> T:
        start.wait()
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        futures = [pool.submit(run, task) for task in tasks]
    return [future.exception() or future.result() for future in futures]
