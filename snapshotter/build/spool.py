"""Temporary files that hold a build's data until its place is known.

A tar stream comes in an order of its own, but small files are cut together in walk order and packs are written in walk
order, which is known when the stream has ended. Memory holds no data, only where it is. The files have no name, so nothing
is left of them however the process ends.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from snapshotter.build.chunk import ByteReader
from snapshotter.build.digesttable import DigestTable
from snapshotter.build.slots import EncodedChunk
from snapshotter.build.temporary import no_room
from snapshotter.format.compression import Codec
from snapshotter.format.digest import Digest, to_text
from snapshotter.format.verity import DIGEST_SIZE

_BUFFER = 1 << 20
_PIECES = 1024  # IOV_MAX


class AppendFile:
    """An unnamed file that grows at its end and is read anywhere."""

    def __init__(self, directory: Path | None) -> None:
        try:
            self._file = tempfile.TemporaryFile(dir=directory, prefix="puzzlefs-", buffering=0)  # noqa: SIM115  # closed by close()
        except OSError as error:
            raise no_room(error, directory) from None
        self._directory = directory
        self._buffer = memoryview(bytearray(_BUFFER))
        self._pending = 0  # bytes of the buffer that are still to be written
        self._flushed = 0

    @property
    def size(self) -> int:
        return self._flushed + self._pending

    def append(self, data: bytes | memoryview) -> int:
        """Add `data`; the offset at which it stands."""
        offset = self.size
        length = len(data)
        if length > _BUFFER - self._pending:
            self._flush()
        if length > _BUFFER:
            self._write_all(memoryview(data))
        else:
            self._buffer[self._pending : self._pending + length] = data
            self._pending += length
        return offset

    def append_all(self, pieces: list[memoryview]) -> None:
        """Add `pieces`, one after another, without a copy of them."""
        self._flush()
        for start in range(0, len(pieces), _PIECES):
            batch = pieces[start : start + _PIECES]
            written = self._write(batch)
            for piece in batch:
                if written < len(piece):
                    self.append(piece[written:])
                written = max(written - len(piece), 0)
            self._flush()

    def fileno(self) -> int:
        self._flush()
        return self._file.fileno()

    def readinto(self, buffer: memoryview, offset: int) -> int:
        if offset + len(buffer) > self._flushed:
            self._flush()
        return os.preadv(self._file.fileno(), [buffer], offset)

    def read(self, offset: int, length: int) -> bytes:
        if offset + length > self._flushed:
            self._flush()
        return os.pread(self._file.fileno(), length, offset)

    def _flush(self) -> None:
        pending, self._pending = self._pending, 0
        self._write_all(self._buffer[:pending])

    def _write_all(self, view: memoryview) -> None:
        while len(view):
            view = view[self._write([view]) :]

    def _write(self, pieces: list[memoryview]) -> int:
        try:
            written = os.writev(self._file.fileno(), pieces)
        except OSError as error:
            raise no_room(error, self._directory) from None
        self._flushed += written
        return written

    def close(self) -> None:
        self._file.close()


_CODECS = tuple(Codec)
"""By value. A call of `Codec` takes as long as all else that finding a chunk does."""


class RawSpool:
    """Raw bytes of files that cannot be cut yet."""

    def __init__(self, directory: Path | None = None) -> None:
        """`directory`: where the file is made; by default, where the system keeps temporary files."""
        self._file = AppendFile(directory)
        self._buffer = memoryview(bytearray(_BUFFER))

    def add(self, reader: ByteReader, size: int) -> int:
        """Keep the `size` bytes that `reader` yields; the offset by which `reader_at` finds them."""
        offset = self._file.size
        while size:
            count = reader.readinto(self._buffer[: min(size, _BUFFER)])
            if not count:
                raise ValueError("the reader ended before the size that it declared")
            self._file.append(self._buffer[:count])
            size -= count
        return offset

    def reader_at(self, offset: int, size: int) -> ByteReader:
        """A reader of the `size` bytes at `offset`."""
        return _SpoolReader(self._file, offset, size)

    def close(self) -> None:
        """Give the space back."""
        self._file.close()


class _SpoolReader:
    def __init__(self, file: AppendFile, offset: int, size: int) -> None:
        self._file = file
        self._offset = offset
        self._end = offset + size

    def readinto(self, buffer: memoryview, /) -> int:
        count = self._file.readinto(buffer[: self._end - self._offset], self._offset)
        self._offset += count
        return count


class SpooledChunk(NamedTuple):
    """A chunk in its stored form: where in the spool, how long, and how long it is raw."""

    offset: int
    stored_length: int
    raw_length: int
    codec: Codec


class ChunkSpool:
    """The new chunks of an image in their stored form, each once, and the fs-verity digest of every chunk that came by.

    About 100 bytes a chunk are in memory. One thread may take chunks while others read.
    """

    def __init__(self, directory: Path | None = None) -> None:
        """`directory`: where the file is made; by default, where the system keeps temporary files."""
        self._file = AppendFile(directory)
        # Every chunk that came by; a row of each column belongs to the digest of that number.
        self.digests = DigestTable()
        self._verity = bytearray()
        self._offsets = array("Q")
        self._stored = array("I")  # 0 where its stored form is not here
        self._raw = array("I")
        self._codecs = array("B")

    def take(self, chunks: Iterable[EncodedChunk]) -> None:
        """Keep `chunks`, each unless it is here already.

        Raises:
            FailedPreconditionError: there is no room for them.
        """
        pieces = []
        end = self._file.size
        for chunk in chunks:
            digest = chunk.digest
            if digest in self.digests:
                continue
            stored = 0
            if chunk.stored is not None:
                pieces.append(chunk.stored)
                stored = len(chunk.stored)
            self._add(digest, chunk.verity, end, stored, chunk.raw_length, chunk.codec)
            end += stored
        self._file.append_all(pieces)

    def keep(self, digest: Digest, codec: Codec, raw_length: int, stored: bytes) -> None:
        """Keep the stored form of a chunk that came by without it.

        Raises:
            FailedPreconditionError: there is no room for it.
        """
        number = self._number(digest)
        self._offsets[number] = self._file.size
        self._raw[number], self._codecs[number] = raw_length, codec
        self._file.append_all([memoryview(stored)])
        self._stored[number] = len(stored)

    def verity(self, digest: Digest) -> bytes:
        """The fs-verity digest of a chunk that came by."""
        number = self._number(digest)
        return bytes(self._verity[number * DIGEST_SIZE : (number + 1) * DIGEST_SIZE])

    def place(self, digest: Digest) -> SpooledChunk | None:
        """Where the stored form of a chunk is; None if it is not here."""
        number = self.digests.find(digest)
        if number is None or not self._stored[number]:
            return None
        return SpooledChunk(self._offsets[number], self._stored[number], self._raw[number], _CODECS[self._codecs[number]])

    def fileno(self) -> int:
        """The descriptor of the file in which stored forms lie, those that were taken so far."""
        return self._file.fileno()

    def readinto(self, buffer: memoryview, offset: int) -> int:
        """Read stored forms, one after another as they lie, from byte `offset` on; how many bytes were read, at least one."""
        return self._file.readinto(buffer, offset)

    def read(self, place: SpooledChunk) -> bytes:
        """The stored form of the chunk that is at `place`."""
        return self._file.read(place.offset, place.stored_length)

    def close(self) -> None:
        """Give the space back."""
        self._file.close()

    def _add(self, digest: Digest, verity: bytes, offset: int, stored: int, raw: int, codec: Codec) -> None:
        # The name last: who finds it finds the rest.
        self._verity += verity
        self._offsets.append(offset)
        self._stored.append(stored)
        self._raw.append(raw)
        self._codecs.append(codec)
        self.digests.add(digest)

    def _number(self, digest: Digest) -> int:
        number = self.digests.find(digest)
        if number is None:
            raise ValueError(f"chunk {to_text(digest)} has not come by")
        return number
