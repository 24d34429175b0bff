"""Temporary files that hold a build's data until its place is known.

A tar stream comes in an order of its own, but small files are cut together in walk order and packs are written in walk
order, which is known when the stream has ended. Memory holds no data, only where it is. The files have no name, so nothing
is left of them however the process ends.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from snapshotter.build.chunk import ByteReader
from snapshotter.build.slots import EncodedChunk
from snapshotter.errors import FailedPreconditionError
from snapshotter.format.compression import Codec
from snapshotter.format.digest import Digest

_BUFFER = 1 << 20


class _AppendFile:
    """An unnamed file that grows at its end and is read anywhere."""

    def __init__(self, directory: Path | None) -> None:
        try:
            self._file = tempfile.TemporaryFile(dir=directory, prefix="puzzlefs-", buffering=0)  # noqa: SIM115  # closed by close()
        except OSError as error:
            raise _failure(error, directory) from None
        self._directory = directory
        self._pending = bytearray()
        self._flushed = 0

    @property
    def size(self) -> int:
        return self._flushed + len(self._pending)

    def append(self, data: bytes | memoryview) -> int:
        """Add `data`; the offset at which it stands."""
        offset = self.size
        self._pending += data
        if len(self._pending) >= _BUFFER:
            self._flush()
        return offset

    def readinto(self, buffer: memoryview, offset: int) -> int:
        if offset + len(buffer) > self._flushed:
            self._flush()
        return os.preadv(self._file.fileno(), [buffer], offset)

    def read(self, offset: int, length: int) -> bytes:
        if offset + length > self._flushed:
            self._flush()
        return os.pread(self._file.fileno(), length, offset)

    def _flush(self) -> None:
        view = memoryview(self._pending)
        try:
            while len(view):
                written = self._file.write(view)
                self._flushed += written
                view = view[written:]
        except OSError as error:
            raise _failure(error, self._directory) from None
        self._pending = bytearray()

    def close(self) -> None:
        self._file.close()


def _failure(error: OSError, directory: Path | None) -> FailedPreconditionError:
    place = directory or tempfile.gettempdir()
    return FailedPreconditionError(
        f"cannot keep temporary data in {place}: {error.strerror}; name another directory with TMPDIR"
    )


class RawSpool:
    """Raw bytes of files that cannot be cut yet."""

    def __init__(self, directory: Path | None = None) -> None:
        """`directory`: where the file is made; by default, where the system keeps temporary files."""
        self._file = _AppendFile(directory)
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
    def __init__(self, file: _AppendFile, offset: int, size: int) -> None:
        self._file = file
        self._offset = offset
        self._end = offset + size

    def readinto(self, buffer: memoryview, /) -> int:
        count = self._file.readinto(buffer[: self._end - self._offset], self._offset)
        self._offset += count
        return count


@dataclass(frozen=True, slots=True)
class SpooledChunk:
    """A chunk in its stored form: where in the spool, how long, and how long it is raw."""

    offset: int
    stored_length: int
    raw_length: int
    codec: Codec


class ChunkSpool:
    """The new chunks of an image in their stored form, each once, and the fs-verity digest of every chunk that came by."""

    def __init__(self, directory: Path | None = None) -> None:
        """`directory`: where the file is made; by default, where the system keeps temporary files."""
        self._file = _AppendFile(directory)
        self.verity: dict[Digest, bytes] = {}
        self.chunks: dict[Digest, SpooledChunk] = {}

    def take(self, encoded: EncodedChunk) -> None:
        """Keep a chunk, unless it is here already.

        Raises:
            FailedPreconditionError: there is no room for it.
        """
        digest = encoded.digest
        if digest in self.verity:
            return
        self.verity[digest] = encoded.verity
        if encoded.stored is not None:
            offset = self._file.append(encoded.stored)
            self.chunks[digest] = SpooledChunk(offset, len(encoded.stored), encoded.raw_length, encoded.codec)

    def keep(self, digest: Digest, codec: Codec, raw_length: int, stored: bytes) -> None:
        """Keep the stored form of a chunk that came by without it.

        Raises:
            FailedPreconditionError: there is no room for it.
        """
        self.chunks[digest] = SpooledChunk(self._file.append(stored), len(stored), raw_length, codec)

    def read(self, digest: Digest) -> bytes:
        """The stored form of a chunk in `chunks`."""
        place = self.chunks[digest]
        return self._file.read(place.offset, place.stored_length)

    def close(self) -> None:
        """Give the space back."""
        self._file.close()
