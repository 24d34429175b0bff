"""The files of a chunk directory, one by one: what `directory` does with the kernel, without what it remembers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from snapshotter.chunkstore.publish import TEMPORARY

READING = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""How a chunk's file is opened. O_NONBLOCK: opening a fifo that somebody put there must not hang."""


def files(base: str) -> Iterator[tuple[str, os.stat_result]]:
    """Path and status of every chunk file below `base`, the directory ``chunks``; what goes meanwhile is left out.

    Raises:
        OSError: there is no such directory, or it cannot be read.
    """
    with os.scandir(base) as directories:
        for directory in directories:
            if directory.name == TEMPORARY or not directory.is_dir(follow_symlinks=False):
                continue
            with contextlib.suppress(FileNotFoundError), os.scandir(directory.path) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        yield entry.path, entry.stat(follow_symlinks=False)


def read(descriptor: int, size: int) -> bytes:
    """`size` bytes, fewer where the file ends earlier."""
    raw = os.read(descriptor, size)
    while len(raw) < size:
        more = os.read(descriptor, size - len(raw))
        if not more:
            break
        raw += more
    return raw


def write(path: str, raw: bytes) -> None:
    """Write a new file."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        descriptor = os.open(path, flags, 0o600)
    try:
        view = memoryview(raw)
        while view:
            view = view[os.write(descriptor, view) :]
    finally:
        os.close(descriptor)
