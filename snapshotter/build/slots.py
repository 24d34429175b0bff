"""Batches of chunks in memory that processes share: raw bytes go in, and what was made of them comes back in the same place.

A slot holds one batch: the lengths of its chunks, the results, and the chunks' bytes, first raw, one after another, then in
their stored form, one after another; no stored form is longer than the raw one. Messages say whose turn with a slot it is.
"""

from __future__ import annotations

import mmap
import os
import struct
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from snapshotter.build.digesttable import DigestTable
from snapshotter.format.compression import ChunkEncoder, Codec
from snapshotter.format.digest import Digest, Digests
from snapshotter.format.verity import both_digests

BATCH_BYTES = 2 << 20
"""Raw bytes that make a batch full."""

BATCH_CHUNKS = 512
"""Chunks that make a batch full."""

_COUNT = struct.Struct("<I")
_CODECS = tuple(Codec)  # by value: a call takes half a microsecond
_RESULT = struct.Struct("<32s32sIIBB")  # digest, fs-verity digest, raw and stored length, whether it is stored, codec

CHUNK_MIN = 256
"""Shorter chunks come only at the end of a stream (`chunk.Cutting`), so that the room of a batch bounds how many it has."""

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
        room = BATCH_BYTES + 2 * chunk_max
        self._layout = _Layout(BATCH_CHUNKS + room // CHUNK_MIN, room)
        self._size = self._layout.size
        if os.fstat(memory).st_size < count * self._size:
            os.ftruncate(memory, count * self._size)
        self._map = mmap.mmap(memory, count * self._size)
        self._view = memoryview(self._map)

    def slot(self, number: int) -> Slot:
        """One of them."""
        return Slot(self._view[number * self._size : (number + 1) * self._size], self._layout)

    def close(self) -> None:
        """Give the memory back; no slot may be in use."""
        self._view.release()
        self._map.close()


class _Layout(NamedTuple):
    """Of a slot: for how many `chunks` it has lines, and for how many bytes of data. What is not used takes no memory."""

    chunks: int
    room: int

    @property
    def results(self) -> int:
        """Where the results begin, behind the number of chunks and their lengths."""
        return 4 + 4 * self.chunks

    @property
    def data(self) -> int:
        """Where the data begins."""
        return _pages(self.results + _RESULT.size * self.chunks)

    @property
    def size(self) -> int:
        """Bytes of the whole slot."""
        return self.data + _pages(self.room)


def _pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


class Slot:
    """One batch."""

    def __init__(self, view: memoryview, layout: _Layout) -> None:
        self._view = view
        self._results = layout.results
        self._data = view[layout.data :]
        self._used = 0
        self._count = 0

    @property
    def is_full(self) -> bool:
        """Whether it should be encoded before more bytes come: there may be no room for two of the longest chunks."""
        return self._used >= BATCH_BYTES or self._count >= BATCH_CHUNKS

    @property
    def is_empty(self) -> bool:
        """Whether no chunk is in it."""
        return not self._count

    def room(self) -> memoryview:
        """What is behind the chunks."""
        return self._data[self._used :]

    def add(self, length: int) -> None:
        """The next `length` bytes of the room are a chunk."""
        _COUNT.pack_into(self._view, 4 + 4 * self._count, length)
        self._used += length
        self._count += 1
        _COUNT.pack_into(self._view, 0, self._count)

    def encode(self, encoder: BatchEncoder) -> None:
        """Put the results in the place of the chunks."""
        (count,) = _COUNT.unpack_from(self._view, 0)
        raws = []
        start = end = 0
        for row in range(count):
            (length,) = _COUNT.unpack_from(self._view, 4 + 4 * row)
            raws.append(self._data[start : start + length])
            start += length
        for row, (digest, verity, codec, stored) in enumerate(encoder.encode(raws)):
            size = len(stored) if stored is not None else 0
            if stored is not None:
                self._data[end : end + size] = stored
            place = self._results + row * _RESULT.size
            _RESULT.pack_into(self._view, place, digest, verity, len(raws[row]), size, stored is not None, codec)
            end += size

    def results(self) -> Iterator[EncodedChunk]:
        """What `encode` has made of each chunk, in their order."""
        (count,) = _COUNT.unpack_from(self._view, 0)
        at = 0
        for row in range(count):
            fields = _RESULT.unpack_from(self._view, self._results + row * _RESULT.size)
            digest, verity, length, size, is_stored, codec = fields
            stored = self._data[at : at + size] if is_stored else None
            yield EncodedChunk(digest, verity, length, _CODECS[codec], stored)
            at += size

    def release(self) -> None:
        """Let go of the memory."""
        self._data.release()
        self._view.release()


class BatchEncoder:
    """Encodes batches of chunks. Those whose names are among `known`, sorted, are neither compressed nor handed over."""

    def __init__(self, level: int, known: bytes | mmap.mmap) -> None:
        """`level` is zstd's."""
        self._encoder = ChunkEncoder(level)
        self._known = Digests(known)
        self._seen = DigestTable()

    def encode(self, raws: Sequence[memoryview]) -> Iterator[tuple[Digest, bytes, Codec, bytes | None]]:
        """Each chunk's name, its fs-verity digest, and its stored form, unless it was asked for before or is known.

        What is stored of a chunk may be written over those before it as it comes: all are hashed when the first one does.
        """
        digests, verities = both_digests(raws)
        if len(self._seen) >= SEEN_MAX:
            self._seen = DigestTable()
        for raw, name, verity in zip(raws, digests, verities, strict=True):
            digest = Digest(name)
            if not self._seen.add(digest) or self._is_known(digest):
                yield digest, verity, Codec.RAW, None
            else:
                codec, stored = self._encoder.encode(raw)
                yield digest, verity, codec, stored

    def _is_known(self, digest: Digest) -> bool:
        row = bisect_left(self._known, digest)
        return row < len(self._known) and self._known[row] == digest
