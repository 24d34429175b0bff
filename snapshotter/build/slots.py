"""Batches of chunks in memory that processes share: raw bytes go in, and what was made of them comes back in the same place.

A slot holds one batch: the lengths of its chunks, the results, and the chunks' bytes, first raw, one after another, then in
their stored form, one after another; no stored form is longer than the raw one. Messages say whose turn with a slot it is.
"""

from __future__ import annotations

import mmap
import os
import struct
from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

from snapshotter.format.compression import ChunkEncoder, Codec
from snapshotter.format.digest import Digest, Digests, sha256
from snapshotter.format.verity import verity_digest

BATCH_BYTES = 1 << 20
"""Raw bytes that make a batch full."""

BATCH_CHUNKS = 512
"""Chunks that make a batch full."""

_COUNT = struct.Struct("<I")
_RESULT = struct.Struct("<32s32sIIBB")  # digest, fs-verity digest, raw and stored length, whether it is stored, codec
_RESULTS_AT = 4 + 4 * BATCH_CHUNKS
_DATA_AT = -(-(_RESULTS_AT + _RESULT.size * BATCH_CHUNKS) // mmap.PAGESIZE) * mmap.PAGESIZE

SEEN_MAX = 1 << 16
"""So many chunks an encoder remembers, so that it need not make their stored form again."""


class EncodedChunk(NamedTuple):
    """What was made of a chunk. `stored` is None where its stored form is not needed, or was handed over before."""

    digest: Digest
    verity: bytes
    raw_length: int
    codec: Codec
    stored: memoryview | None


class Slots:
    """`count` slots in the memory of file descriptor `memory`."""

    def __init__(self, memory: int, count: int, chunk_max: int) -> None:
        """`chunk_max`: the longest chunk that is put in, in bytes."""
        self._size = _DATA_AT + -(-(BATCH_BYTES + chunk_max) // mmap.PAGESIZE) * mmap.PAGESIZE
        if os.fstat(memory).st_size < count * self._size:
            os.ftruncate(memory, count * self._size)
        self._map = mmap.mmap(memory, count * self._size)
        self._view = memoryview(self._map)

    def slot(self, number: int) -> Slot:
        """One of them."""
        return Slot(self._view[number * self._size : (number + 1) * self._size])

    def close(self) -> None:
        """Give the memory back; no slot may be in use."""
        self._view.release()
        self._map.close()


class Slot:
    """One batch."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._data = view[_DATA_AT:]
        self._used = 0
        self._count = 0

    def add(self, raw: bytes | memoryview) -> bool:
        """Put a chunk in; whether the batch is full now."""
        end = self._used + len(raw)
        self._data[self._used : end] = raw
        _COUNT.pack_into(self._view, 4 + 4 * self._count, len(raw))
        self._used = end
        self._count += 1
        _COUNT.pack_into(self._view, 0, self._count)
        return end >= BATCH_BYTES or self._count == BATCH_CHUNKS

    def encode(self, encoder: BatchEncoder) -> None:
        """Put the results in the place of the chunks."""
        (count,) = _COUNT.unpack_from(self._view, 0)
        start = end = 0
        for row in range(count):
            (length,) = _COUNT.unpack_from(self._view, 4 + 4 * row)
            raw = self._data[start : start + length]
            digest, verity, codec, stored = encoder.encode(raw)
            size = len(stored) if stored is not None else 0
            if stored is not None:
                self._data[end : end + size] = stored
            place = _RESULTS_AT + row * _RESULT.size
            _RESULT.pack_into(self._view, place, digest, verity, length, size, stored is not None, codec)
            start += length
            end += size

    def results(self) -> Iterator[EncodedChunk]:
        """What `encode` has made of each chunk, in their order."""
        (count,) = _COUNT.unpack_from(self._view, 0)
        at = 0
        for row in range(count):
            fields = _RESULT.unpack_from(self._view, _RESULTS_AT + row * _RESULT.size)
            digest, verity, length, size, is_stored, codec = fields
            stored = self._data[at : at + size] if is_stored else None
            yield EncodedChunk(Digest(digest), verity, length, Codec(codec), stored)
            at += size

    def release(self) -> None:
        """Let go of the memory."""
        self._data.release()
        self._view.release()


class BatchEncoder:
    """Encodes chunks one after another. Those whose names are among `known`, sorted, are neither compressed nor handed over."""

    def __init__(self, level: int, known: bytes | mmap.mmap) -> None:
        """`level` is zstd's."""
        self._encoder = ChunkEncoder(level)
        self._known = Digests(known)
        self._seen: dict[Digest, bytes] = {}

    def encode(self, raw: memoryview) -> tuple[Digest, bytes, Codec, bytes | None]:
        """The chunk's name, its fs-verity digest, and its stored form, unless it was asked for before or is known."""
        digest = sha256(raw)
        verity = self._seen.get(digest)
        if verity is not None:
            return digest, verity, Codec.RAW, None
        verity = verity_digest(raw)
        if len(self._seen) >= SEEN_MAX:
            self._seen.clear()
        self._seen[digest] = verity
        row = bisect_left(self._known, digest)
        if row < len(self._known) and self._known[row] == digest:
            return digest, verity, Codec.RAW, None
        codec, stored = self._encoder.encode(raw)
        return digest, verity, codec, stored
