"""A stream that ends only if it was what its descriptor says."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import BinaryIO, Protocol

from snapshotter.errors import CorruptError
from snapshotter.format.digest import to_text
from snapshotter.registry.base import Descriptor

_BUFFER = 64 << 10
"""Reads of more bytes than this go past the buffer, without a copy: those of a layer that is cut where it lies."""


class Source(Protocol):
    """What bytes are taken from."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Put at most as many more bytes as `buffer` has room for into it; how many, none at the end."""
        ...


class Checker:
    """Follows the bytes of one blob and says at its end whether they were the blob."""

    def __init__(self, blob: Descriptor, place: str) -> None:
        self._blob = blob
        self._place = place
        self._hash = hashlib.sha256()
        self.left = blob.size
        """Bytes still to come."""

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes.

        Raises:
            CorruptError: these are too many, or the last ones and the digest is another one.
        """
        self.left -= len(data)
        if self.left < 0:
            raise self.error(f"it is longer than the {self._blob.size} bytes of its descriptor")
        self._hash.update(data)
        if self.left == 0 and self._hash.digest() != self._blob.digest:
            raise self.error(f"its content has the digest sha256:{self._hash.hexdigest()}")

    def error(self, why: str) -> CorruptError:
        """The error for this blob."""
        return CorruptError(f"blob {to_text(self._blob.digest)} from {self._place} is corrupt: {why}")


class _Verified(io.RawIOBase):
    def __init__(self, source: Source, blob: Descriptor, place: str, close: Callable[[], object]) -> None:
        super().__init__()
        self._source = source
        self._checker = Checker(blob, place)
        self._close = close
        self._failed: CorruptError | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # what io gives
        if self._failed is not None:
            raise self._failed
        try:
            return self._next(memoryview(buffer))
        except CorruptError as error:
            # A caller that goes on reading must not take the rest for the end.
            self._failed = error
            raise

    def _next(self, buffer: memoryview) -> int:
        checker = self._checker
        if checker.left == 0:
            return 0
        count = self._source.readinto(buffer[: checker.left])
        if not count:
            raise checker.error(f"it ends {checker.left} bytes before the size in its descriptor")
        checker.update(buffer[:count])
        if checker.left == 0 and self._source.readinto(memoryview(bytearray(1))):
            raise checker.error("it is longer than the size in its descriptor")
        return count

    def close(self) -> None:
        if not self.closed:
            self._close()
        super().close()


def verified(source: Source, blob: Descriptor, place: str, close: Callable[[], object]) -> BinaryIO:
    """`source` as a stream of exactly the bytes of `blob`; its last bytes are given out only when size and digest are right.

    Reading raises CorruptError otherwise, and what `source` raises. `place` is for messages; `close` is called when the stream
    is closed. An empty blob is checked at once.
    """
    if blob.size == 0:
        Checker(blob, place).update(b"")
    return io.BufferedReader(_Verified(source, blob, place, close), _BUFFER)
