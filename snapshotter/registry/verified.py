"""A stream that ends only if it was what its descriptor says."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import BinaryIO, Protocol

from snapshotter.errors import CorruptError
from snapshotter.format.digest import to_text
from snapshotter.registry.base import Descriptor

_BUFFER = 256 << 10


class Source(Protocol):
    """What bytes are taken from."""

    def read(self, size: int, /) -> bytes:
        """At most `size` more bytes; none at the end."""
        ...


class Checker:
    """Follows the bytes of one blob and says at its end whether they were the blob."""

    def __init__(self, blob: Descriptor, place: str) -> None:
        self._blob = blob
        self._place = place
        self._hash = hashlib.sha256()
        self.left = blob.size
        """Bytes still to come."""

    def update(self, data: bytes) -> None:
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

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # any buffer; io gives memoryviews
        if self._failed is not None:
            raise self._failed
        try:
            return self._next(buffer)
        except CorruptError as error:
            # A caller that goes on reading must not take the rest for the end.
            self._failed = error
            raise

    def _next(self, buffer: memoryview) -> int:
        checker = self._checker
        if checker.left == 0:
            return 0
        data = self._source.read(min(len(buffer), checker.left))
        if not data:
            raise checker.error(f"it ends {checker.left} bytes before the size in its descriptor")
        checker.update(data)
        if checker.left == 0 and self._source.read(1):
            raise checker.error("it is longer than the size in its descriptor")
        buffer[: len(data)] = data
        return len(data)

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
