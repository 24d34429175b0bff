"""What a file is made of, as rootfs metadata stores it: a list of chunks, each with a blob that has a digest.

A file's chunks are read when they are asked for, since a large file has tens of thousands; and in one piece where they lie as
our writer lays them, since every cold read comes here: each struct and each digest right behind what comes before it, and
behind a landing pad of its own where that is in another segment. What lies otherwise is read pointer by pointer, with the same
result.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate

from snapshotter.errors import CorruptError
from snapshotter.format.digest import Digest
from snapshotter.format.model import CHUNK_MAX, FileChunk
from snapshotter.format.reader import MessageReader, Shape, StructList

FILE_MAX = (1 << 63) - 1
"""Most bytes of a file."""

_CHUNK = Shape("Q", 1)  # len; blob
_BLOB = Shape("QQ", 1)  # offset, compressed in bit 0; digest
_BLOB_AND_DIGEST = Shape("QQQ32s", 0)
_PAD_BLOB_AND_DIGEST = Shape("QQQQ32s", 0)
_ONE_CHUNK = Shape("QQQQQQ32s", 0)  # the list's tag, its only struct, blob and digest
_FAR = 2
_DISTANCE = 0xFFFFFFFC
_BLOB_POINTER = 2 << 32 | 1 << 48
_CHUNK_POINTER = 1 | (7 | 2 << 3) << 32
_CHUNK_TAG = 1 << 2 | 1 << 32 | 1 << 48
_DIGEST_POINTER = 1 | (2 | 32 << 3) << 32

Chunk = tuple[Digest, int, int, bool]
"""Digest, offset, length and whether it is compressed, as in `model.FileChunk`."""


class FileChunks:
    """The chunks of one file as they are stored: each is read, and checked, when it is asked for."""

    __slots__ = ("_ino", "_reader", "_stored")

    def __init__(self, reader: MessageReader, ino: int, stored: StructList) -> None:
        self._reader = reader
        self._ino = ino
        self._stored = stored

    def __len__(self) -> int:
        return self._stored.length

    def ends(self) -> array[int]:
        """Where in the file each chunk ends; 8 bytes a chunk.

        Raises:
            CorruptError: a chunk has no bytes, or the file has more than a file can have.
        """
        lengths = self._reader.numbers(self._stored)
        if not all(lengths):
            raise CorruptError(f"inode {self._ino}: a chunk without bytes")
        if sum(lengths) > FILE_MAX:
            raise CorruptError(f"inode {self._ino}: a file of {sum(lengths)} bytes")
        return array("Q", accumulate(lengths))

    def all(self) -> Sequence[FileChunk]:
        """Every chunk.

        Raises:
            CorruptError: one breaks a rule of the format, or the file has more bytes than a file can have.
        """
        chunks = [FileChunk(*chunk) for chunk in self.between(0, len(self))]
        size = sum(chunk.length for chunk in chunks)
        if size > FILE_MAX:
            raise CorruptError(f"inode {self._ino}: a file of {size} bytes")
        return chunks

    def between(self, first: int, last: int) -> list[Chunk]:
        """The chunks from number `first` on, up to but without `last`.

        Raises:
            CorruptError: one breaks a rule of the format.
        """
        if first >= last:
            return []
        return self._adjoining(first, last) or [self._at(row) for row in range(first, last)]

    def _adjoining(self, first: int, last: int) -> list[Chunk] | None:
        """As `between`, where the blobs lie one behind the other, which saves following their pointers; else None."""
        segment, word, _, data_words, pointers = self._stored
        if (data_words, pointers) != (_CHUNK.data_words, _CHUNK.pointers):
            return None
        part = StructList(segment, word + 2 * first, last - first, data_words, pointers)
        lengths, blobs = zip(*self._reader.rows(part, _CHUNK), strict=True)
        is_far = blobs[0] & 7 == _FAR
        if not is_far and (blobs[0] ^ _BLOB_POINTER) & ~_DISTANCE:
            return None
        # How the pointers differ: each is two words behind the one before; a far one tells a place and not a distance.
        shape, step = (_PAD_BLOB_AND_DIGEST, 8 << 3) if is_far else (_BLOB_AND_DIGEST, 7 - 2 << 2)
        if blobs != tuple(range(blobs[0], blobs[0] + len(blobs) * step, step)):
            return None
        found = self._reader.run(segment, part.word + 1, blobs[0], shape, len(blobs))
        if found is None:
            return None
        chunks = []
        for length, (*pad, offset, flags, pointer, digest) in zip(lengths, found, strict=True):
            if pointer != _DIGEST_POINTER or (is_far and pad[0] != _BLOB_POINTER):
                return None
            _check_chunk(self._ino, 32, offset, length)
            chunks.append((digest, offset, length, flags & 1 == 1))
        return chunks

    def _at(self, row: int) -> Chunk:
        reader = self._reader
        segment, word, _, data_words, pointers = self._stored
        length, pointer = reader.row(self._stored, row, _CHUNK)
        at = word + row * (data_words + pointers) + data_words
        segment, at, (offset, flags, pointer) = reader.struct(segment, at, pointer, _BLOB)
        digest, digest_length = reader.data(segment, at, pointer, 32)
        _check_chunk(self._ino, digest_length, offset, length)
        return Digest(digest), offset, length, flags & 1 == 1


def usual(reader: MessageReader, ino: int, segment: int, at: int, pointer: int) -> Chunk | None:
    """The chunk of a file that has one and lies as our writer lays it; None of any other file.

    Raises:
        CorruptError: it breaks a rule of the format.
    """
    found = reader.behind(segment, at, pointer, _CHUNK_POINTER, _ONE_CHUNK)
    if found is None:
        return None
    tag, length, blob, offset, flags, digest_pointer, digest = found
    if tag != _CHUNK_TAG or blob != _BLOB_POINTER or digest_pointer != _DIGEST_POINTER:
        return None
    _check_chunk(ino, 32, offset, length)
    return digest, offset, length, flags & 1 == 1


def _check_chunk(ino: int, digest_length: int, offset: int, length: int) -> None:
    if digest_length != 32:
        raise CorruptError(f"inode {ino}: a chunk's digest has {digest_length} bytes instead of 32")
    if length == 0 or offset + length > CHUNK_MAX:
        raise CorruptError(f"inode {ino}: bytes {offset}+{length} of a chunk, which has at most {CHUNK_MAX}")
