"""A load that checks every byte: reads files at random, in ways that the page cache does not answer, until told to end.

Run as a program: ``load.py DIRECTORY SEED`` reads below DIRECTORY the files that `path` and `content` describe; when its
standard input ends, it prints what it found as one line of JSON and exits with 1 if anything was wrong.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import select
import sys
import time
from pathlib import Path

FILES = 240
_SIZES = (100, 5_000, 60_000, 300_000, 1_500_000)


def size(number: int) -> int:
    """Bytes of file `number`."""
    return _SIZES[number % len(_SIZES)] + number


def content(number: int) -> bytes:
    """What file `number` holds: nothing that compresses."""
    return random.Random(number).randbytes(size(number))


def path(number: int) -> str:
    """Where file `number` is, below the directory of the load."""
    return f"d{number % 7}/f{number}"


class Reader:
    """Reads at random and remembers what was wrong, and how long the slowest call took."""

    def __init__(self, directory: Path, seed: int) -> None:
        self._directory = directory
        self._random = random.Random(seed)
        self._known: dict[int, bytes] = {}
        self._buffer = mmap.mmap(-1, 2 << 20)
        self.reads = 0
        self.bytes = 0
        self.slowest = 0.0
        self.wrong: list[str] = []

    def once(self) -> None:
        """One call after the other on one file."""
        number = self._random.randrange(FILES)
        begin = time.monotonic()
        try:
            self._check(number)
        except OSError as error:
            self.wrong.append(f"{path(number)}: {error}")
        self.slowest = max(self.slowest, time.monotonic() - begin)
        self.reads += 1

    def _check(self, number: int) -> None:
        if number not in self._known:
            self._known[number] = content(number)
        expected = self._known[number]
        name = self._directory / path(number)
        # A name that was never asked for is in no cache of the kernel's.
        if os.path.lexists(name.with_name(f"none-{os.getpid()}-{self.reads}")):
            self.wrong.append(f"{name}: a name beside it that is not there")
        if self._random.random() < 0.1 and name.name not in os.listdir(name.parent):
            self.wrong.append(f"{name} is not listed")
        direct = self._random.random() < 0.5
        fd = os.open(name, os.O_RDONLY | (os.O_DIRECT if direct else 0))
        try:
            if os.fstat(fd).st_size != len(expected):
                self.wrong.append(f"{name}: {os.fstat(fd).st_size} bytes, not {len(expected)}")
            if direct:
                got = os.readv(fd, [self._buffer])
                data = self._buffer[:got]
            else:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                data = b"".join(iter(lambda: os.read(fd, 100_000), b""))
        finally:
            os.close(fd)
        self.bytes += len(data)
        if data != expected:
            self.wrong.append(f"{name}: {len(data)} bytes, and not the right ones ({'direct' if direct else 'buffered'})")

    def result(self) -> dict[str, object]:
        """What was found."""
        return {"reads": self.reads, "bytes": self.bytes, "slowest": round(self.slowest, 3), "wrong": self.wrong[:20]}


def main() -> int:
    """See the module."""
    reader = Reader(Path(sys.argv[1]), int(sys.argv[2]))
    while not select.select([sys.stdin], [], [], 0)[0]:
        reader.once()
    print(json.dumps(reader.result()), flush=True)
    return 1 if reader.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
