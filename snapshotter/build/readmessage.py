"""Metadata messages that are read: in memory where they are not large, else in a mapped temporary file.

A message has some 200 bytes a file, and an image can have millions of files. Whoever reads a mapped one gives its pages back
now and then (`MessageReader.rest`): they stay in the kernel's cache for as long as it has room.
"""

from __future__ import annotations

import hashlib
import mmap
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from snapshotter.build.temporary import no_room
from snapshotter.errors import CorruptError
from snapshotter.format.compression import decompress_parts
from snapshotter.format.digest import Digest
from snapshotter.format.verity import VerityHasher

KEPT_MAX = 16 << 20
"""Longer ones are in files, in bytes: those of an image of 80,000 files are not."""

_PART = 1 << 20


class ReadMessage:
    """A `format.message.Message`. `data` is what a reader takes; the file is gone with the last user of it."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        """All of its bytes. A map is one of a file that nobody writes to."""
        self.data = data

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return len(self.data)

    def parts(self) -> Iterator[bytes | memoryview]:
        """All of them, in order; each part is good until the next one is asked for."""
        data = self.data
        if isinstance(data, bytes):
            yield data
            return
        with memoryview(data) as view:
            for start in range(0, len(view), _PART):
                with view[start : start + _PART] as part:
                    yield part
                data.madvise(mmap.MADV_DONTNEED)

    def to_bytes(self) -> bytes:
        """All of them as one."""
        return bytes(self.data)

    def digest(self) -> Digest:
        """Their sha256."""
        name = hashlib.sha256()
        for part in self.parts():
            name.update(part)
        return Digest(name.digest())

    def verity(self) -> bytes:
        """Their fs-verity digest."""
        found = VerityHasher()
        for part in self.parts():
            found.update(part)
        return found.digest()


def hold(parts: Iterable[bytes], directory: Path | None = None) -> ReadMessage:
    """The message that comes in `parts`. `directory`: where a file is made; by default, where the system keeps temporary files.

    Raises:
        FailedPreconditionError: there is no room for it. And what `parts` raises.
    """
    kept = bytearray()
    rest = iter(parts)
    for part in rest:
        kept += part
        if len(kept) > KEPT_MAX:
            return ReadMessage(_mapped(kept, rest, directory))
    return ReadMessage(bytes(kept))


def _mapped(first: bytearray, rest: Iterator[bytes], directory: Path | None) -> mmap.mmap:
    try:
        file = tempfile.TemporaryFile(dir=directory, prefix="puzzlefs-", buffering=0)  # noqa: SIM115  closed below
    except OSError as error:
        raise no_room(error, directory) from None
    with file:
        part: bytes | bytearray | None = first
        while part is not None:
            view = memoryview(part)
            while len(view):
                try:
                    view = view[file.write(view) :]
                except OSError as error:
                    raise no_room(error, directory) from None
            view.release()
            first.clear()
            part = next(rest, None)
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def pieces(stream: BinaryIO) -> Iterator[bytes]:
    """The bytes of `stream`, as `hold` takes them. Raises what reading raises."""
    while piece := stream.read(_PART):
        yield piece


def hold_compressed(stream: BinaryIO, limit: int, directory: Path | None = None) -> ReadMessage:
    """The message of at most `limit` bytes that is in a blob, compressed; `directory` as in `hold`.

    Raises:
        CorruptError: it is not the blob that it should be, or does not decode. And what `hold` raises.
    """
    try:
        return hold(decompress_parts(stream, limit), directory)
    except CorruptError:
        for _ in pieces(stream):
            pass  # what is another blob is to be called that, and not one that does not decode
        raise
