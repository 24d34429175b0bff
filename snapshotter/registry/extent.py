"""Runs of bytes in open files: what the blobs and documents of a layout or of an archive are read from."""

from __future__ import annotations

import os

from snapshotter.errors import CorruptError, UnavailableError

BLOCK = 1 << 20
"""Most bytes of one read."""


class Extent:
    """A run of bytes in an open file. Closing it closes the file if it is its `owner`."""

    def __init__(self, descriptor: int, offset: int, size: int, name: str, *, owner: bool) -> None:
        """`name` is for messages."""
        self._name = name
        self._descriptor = descriptor
        self._offset = offset
        self._owner = owner
        self._at = 0
        self.size = size

    def __enter__(self) -> Extent:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def read_at(self, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset` on; none at the end. Raises UnavailableError where the file cannot be read."""
        length = min(length, self.size - offset, BLOCK)
        try:
            return os.pread(self._descriptor, length, self._offset + offset) if length > 0 else b""
        except OSError as error:
            raise UnavailableError(f"{self._name}: cannot be read: {error.strerror}") from error

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill `buffer`, or a part of it, from where the last `readinto` ended; how many bytes, none at the end."""
        buffer = buffer[: max(self.size - self._at, 0)]
        if not buffer:
            return 0
        try:
            count = os.preadv(self._descriptor, [buffer], self._offset + self._at)
        except OSError as error:
            raise UnavailableError(f"{self._name}: cannot be read: {error.strerror}") from error
        self._at += count
        return count

    def close(self) -> None:
        """Give back the file."""
        if self._owner:
            os.close(self._descriptor)
            self._owner = False


def exactly(extent: Extent, offset: int, length: int, what: str) -> bytes:
    """`length` bytes of `extent` from `offset` on; `what` is for messages.

    Raises:
        CorruptError: it ends before. UnavailableError: it cannot be read.
    """
    if offset + length > extent.size:
        raise CorruptError(f"{what} ends before byte {offset + length}: it has {extent.size}")
    data = bytearray()
    while len(data) < length:
        piece = extent.read_at(offset + len(data), length - len(data))
        if not piece:
            raise CorruptError(f"{what} became shorter while it was read")
        data += piece
    return bytes(data)
