"""Temporary files that hold a build's data until its place is known.

A tar stream comes in an order of its own, but small files are cut together in walk order and packs are written in walk
order, which is known when the stream has ended. Memory holds no data, only where it is. The files have no name, so nothing
is left of them however the process ends.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from snapshotter.build.chunk import ByteReader, CutChunk
from snapshotter.build.encoder import Encoded
from snapshotter.errors import FailedPreconditionError
from snapshotter.format.compression import ChunkEncoder, Codec
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.verity import verity_digest

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
    """The new chunks of an image in their stored form, each once, and the fs-verity digest of every chunk that came by.

    `is_stored` says which chunks the destination has already: these are neither compressed nor kept.
    """

    def __init__(self, is_stored: Callable[[Digest], bool], level: int, directory: Path | None = None) -> None:
        """`level` is zstd's."""
        self._is_stored = is_stored
        self._level = level
        self._thread = threading.local()
        self._file = _AppendFile(directory)
        self.verity: dict[Digest, bytes] = {}
        self.chunks: dict[Digest, SpooledChunk] = {}

    def encode(self, raw: bytes) -> Encoded:
        """Name a chunk and, if it is new, compress it. Called from several threads."""
        digest = sha256(raw)
        chunk = CutChunk(digest, len(raw))
        if digest in self.verity:
            return Encoded(chunk)
        verity = verity_digest(raw)
        if self._is_stored(digest):
            return Encoded(chunk, verity)
        codec, stored = self._encoder().encode(raw)
        return Encoded(chunk, verity, codec, stored)

    def _encoder(self) -> ChunkEncoder:
        encoder: ChunkEncoder | None = getattr(self._thread, "encoder", None)
        if encoder is None:
            encoder = self._thread.encoder = ChunkEncoder(self._level)
        return encoder

    def take(self, encoded: Encoded) -> None:
        """Keep what `encode` made. Called from one thread."""
        digest = encoded.chunk.digest
        if encoded.verity is None or digest in self.verity:
            return
        self.verity[digest] = encoded.verity
        if encoded.stored is not None:
            offset = self._file.append(encoded.stored)
            self.chunks[digest] = SpooledChunk(offset, len(encoded.stored), encoded.chunk.length, encoded.codec)

    def read(self, digest: Digest) -> bytes:
        """The stored form of a chunk in `chunks`."""
        place = self.chunks[digest]
        return self._file.read(place.offset, place.stored_length)

    def close(self) -> None:
        """Give the space back."""
        self._file.close()
