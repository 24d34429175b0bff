"""Puts a pack together: chunks out of the spool, one after another, then the index; and names it.

As a process, ``python -m snapshotter.build.packworker SOURCE TARGET`` (two descriptors), started by `packwriter`: the pieces
come by standard input, digest or error number go back by standard output.
"""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import struct
import sys
from array import array
from typing import NamedTuple

from snapshotter.format.digest import Digest

_BLOCK = 1 << 20
_BEHIND = 5
"""How much nicer than the build: there are often two packs, and the metadata that it makes meanwhile takes longer."""

_COUNTS = struct.Struct("<QQ")  # bytes before the chunks, numbers in `runs`
ANSWER = struct.Struct("<i32s")
"""What comes back: an error's number, negative if the source could not be read, 0 if there was none; and the digest."""


class UnreadableError(Exception):
    """The source of a pack cannot be read; `number` is the error's."""

    def __init__(self, number: int) -> None:
        """`number` is the error's."""
        super().__init__(os.strerror(number))
        self.number = number


class Pieces(NamedTuple):
    """What a pack consists of: the bytes `head`, then for each two numbers of `runs` what is at an offset of the source, and
    how many bytes that is, then the bytes `end`."""

    head: bytes
    runs: array[int]
    end: bytes

    def to_bytes(self) -> bytes:
        """For `from_bytes`, on the same machine."""
        return b"".join((_COUNTS.pack(len(self.head), len(self.runs)), self.head, self.runs.tobytes(), self.end))

    @classmethod
    def from_bytes(cls, data: bytes) -> Pieces:
        """What was made by `to_bytes`."""
        head_size, count = _COUNTS.unpack_from(data)
        head_end = _COUNTS.size + head_size
        runs = array("Q")
        runs_end = head_end + runs.itemsize * count
        runs.frombytes(data[head_end:runs_end])
        return cls(data[_COUNTS.size : head_end], runs, data[runs_end:])


def put_together(pieces: Pieces, source: int, target: int) -> Digest:
    """Write a pack to the descriptor `target`, its chunks from the descriptor `source`; its digest.

    Raises:
        OSError: it cannot be written. UnreadableError: the source cannot be read.
    """
    whole = hashlib.sha256()
    buffer = memoryview(bytearray(_BLOCK))
    used = len(pieces.head)
    buffer[:used] = pieces.head

    def put(data: memoryview) -> None:
        whole.update(data)
        while len(data):
            data = data[os.write(target, data) :]

    numbers = iter(pieces.runs)
    for offset, length in zip(numbers, numbers, strict=True):
        at, end = offset, offset + length
        while at < end:
            count = _read(source, buffer[used : used + end - at], at)
            at += count
            used += count
            if used == _BLOCK:
                put(buffer)
                used = 0
    put(buffer[:used])
    put(memoryview(pieces.end))
    return Digest(whole.digest())


def _read(source: int, buffer: memoryview, offset: int) -> int:
    try:
        count = os.preadv(source, [buffer], offset)
    except OSError as error:
        raise UnreadableError(error.errno or errno.EIO) from error
    if not count:
        raise UnreadableError(errno.EIO)  # it ends before its chunks do
    return count


def main(source: int, target: int) -> None:
    """Do it, and tell."""
    number, digest = 0, b""
    try:
        digest = put_together(Pieces.from_bytes(sys.stdin.buffer.read()), source, target)
    except UnreadableError as error:
        number = -error.number
    except OSError as error:
        number = error.errno or errno.EIO
    sys.stdout.buffer.write(ANSWER.pack(number, digest))


if __name__ == "__main__":
    # Who interrupts the build's process group means the build, which waits for this.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_BEHIND)
    main(*map(int, sys.argv[1:]))
