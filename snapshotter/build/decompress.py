"""A layer's blob as the stream of its uncompressed tar, with the tar's digest.

What it is compressed with is told by its first bytes, as containerd does it: media types are wrong often enough
(``tar.gzip`` on plain tars). Decompressing and hashing run in a thread of their own, a few blocks ahead of the reader. A plain
tar that lies on this machine has nothing to wait for, so it is read where it is wanted: two threads that hand every megabyte
over cost a fifth more processor time than one that reads and hashes.
"""

from __future__ import annotations

import gzip
import hashlib
import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import BinaryIO, Protocol, Self

import zstandard
from isal import igzip, isal_zlib

from snapshotter.build.tar import ByteSource
from snapshotter.errors import CorruptError
from snapshotter.format.digest import Digest

BLOCK = 1 << 20
SMALL_BLOCK = 64 << 10
AHEAD = 8
"""Blocks that are kept ready."""

WINDOW_MAX = 1 << 27
"""Largest zstd window that is accepted, in bytes: what ``zstd --long`` asks for."""

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Peeked:
    """`source` again from its beginning, of which `head` has been read; counts what is taken."""

    def __init__(self, head: bytes, source: BinaryIO, on_bytes: Callable[[int], None]) -> None:
        self._head = head
        self._source = source
        self._on_bytes = on_bytes

    def read(self, size: int = -1, /) -> bytes:
        if self._head:
            data, self._head = self._head[:size], self._head[size:] if size >= 0 else b""
        else:
            data = self._source.read(size)
        if data:
            self._on_bytes(len(data))
        return data

    def readinto(self, buffer: bytearray | memoryview, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readable(self) -> bool:
        return True


def _nothing(count: int) -> None:
    pass


class Layer(ByteSource, Protocol):
    """The uncompressed bytes of a layer's blob. Used in a with statement, which closes the blob."""

    length: int
    """Uncompressed bytes that were read so far."""

    def digest(self) -> Digest:
        """sha256 of all uncompressed bytes; they must have been read to the end."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def open_layer(blob: BinaryIO, what: str, on_bytes: Callable[[int], None], verified: Digest) -> Layer:
    """The layer whose `blob` lies on this machine, and has the digest `verified` if it can be read to its end.

    `what` names it in messages, `on_bytes` is told how many stored bytes were read. Raises what reading `blob` raises.
    """
    try:
        head = _head(blob)
    except BaseException:
        blob.close()
        raise
    if head.startswith(_GZIP) or head == _ZSTD:
        return LayerStream(blob, what, on_bytes, head=head)
    return PlainLayer(blob, head, on_bytes, verified)


def _head(blob: BinaryIO) -> bytes:
    """The first bytes of a blob, by which it is known what it is compressed with."""
    head = b""
    while len(head) < len(_ZSTD) and (more := blob.read(len(_ZSTD) - len(head))):
        head += more
    return head


class PlainLayer:
    """A layer that is not compressed, read by whoever asks."""

    def __init__(self, blob: BinaryIO, head: bytes, on_bytes: Callable[[int], None], verified: Digest) -> None:
        """`head`: what has been read of `blob`; the rest as `open_layer` has it."""
        self._blob = blob
        self._head = head
        self._on_bytes = on_bytes
        self._verified = verified
        self._ended = False
        self._told = 0
        self.length = 0
        """See `Layer`."""

    def read(self, size: int, /) -> bytes:
        """The next block: a small one, since what is large is read by `readinto`. Raises what `blob` raises."""
        block = self._head or self._blob.read(min(size, SMALL_BLOCK))
        self._head = b""
        self._took(len(block))
        return block

    def readinto(self, buffer: memoryview, /) -> int:
        """See `tar.InPlaceSource`. Raises what `blob` raises."""
        if self._head:
            count = min(len(self._head), len(buffer))
            buffer[:count], self._head = self._head[:count], self._head[count:]
        else:
            count = self._blob.readinto(buffer)  # type: ignore[attr-defined]  # typeshed's BinaryIO lacks what all streams have
        self._took(count)
        return count

    def _took(self, count: int) -> None:
        self._ended = not count
        self.length += count
        # Every so often: there are several reads for each file.
        untold = self.length - self._told
        if untold >= BLOCK or (self._ended and untold):
            self._told = self.length
            self._on_bytes(untold)

    def digest(self) -> Digest:
        """See `Layer`."""
        if not self._ended:
            raise ValueError("the layer has not been read to its end")
        return self._verified

    def __enter__(self) -> Self:
        """Nothing is to be started."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the blob."""
        self._blob.close()


class LayerStream:
    """The uncompressed bytes of a layer's blob, read ahead in a thread; `digest` is known when all have been read.

    Used in a with statement, which ends the thread.
    """

    def __init__(
        self,
        blob: BinaryIO,
        what: str,
        on_bytes: Callable[[int], None] = _nothing,
        verified: Digest | None = None,
        head: bytes = b"",
    ) -> None:
        """`what` names the layer in messages; `on_bytes` is told how many stored bytes were read, from the thread.

        `verified`: the digest that `blob` has if it can be read to its end. Then what is not compressed is not hashed again.
        `head`: what has been read of `blob`.
        """
        self._head = head
        self._verified = verified
        self._blob = blob
        self._what = what
        self._on_bytes = on_bytes
        self._hash = hashlib.sha256()
        self._blocks: queue.Queue[bytes | Exception] = queue.Queue(AHEAD)
        self._stop = threading.Event()
        self._ended = False
        self.length = 0
        """Uncompressed bytes that were read so far."""
        self._thread = threading.Thread(target=self._run, name="layer-stream", daemon=True)

    def read(self, size: int, /) -> bytes:
        """The next block, whatever `size` (a block is at most `BLOCK` bytes); empty at the end.

        Raises:
            CorruptError: the blob does not decompress; or what its store raises.
        """
        if self._ended:
            return b""
        block = self._blocks.get()
        if isinstance(block, Exception):
            self._ended = True
            raise block
        self._ended = not block
        self.length += len(block)
        return block

    def digest(self) -> Digest:
        """sha256 of all uncompressed bytes; they must have been read to the end."""
        if not self._ended:
            raise ValueError("the stream has not been read to its end")
        return self._verified or Digest(self._hash.digest())

    def __enter__(self) -> Self:
        """Start reading."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop reading, and close the blob."""
        self._stop.set()
        while self._thread.is_alive():
            # The thread may be waiting for room.
            try:
                self._blocks.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()
        self._blob.close()

    def _run(self) -> None:
        try:
            source = self._open()
            while not self._stop.is_set():
                block = source.read(BLOCK)
                if self._verified is None:
                    self._hash.update(block)
                self._blocks.put(block)
                if not block:
                    return
        except (EOFError, gzip.BadGzipFile, isal_zlib.IsalError, zstandard.ZstdError) as error:  # type: ignore[misc]  # isal's stubs say instance
            self._blocks.put(CorruptError(f"{self._what} does not decompress: {error}"))
        except Exception as error:
            self._blocks.put(error)

    def _open(self) -> _Readable:
        head = self._head or _head(self._blob)
        source = _Peeked(head, self._blob, self._on_bytes)
        if head.startswith(_GZIP) or head == _ZSTD:
            self._verified = None
        if head.startswith(_GZIP):
            return igzip.IGzipFile(fileobj=source, mode="rb")  # type: ignore[no-untyped-call]
        if head == _ZSTD:
            decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_MAX)
            return decompressor.stream_reader(source, read_size=BLOCK, read_across_frames=True)  # type: ignore[arg-type]
        return source
