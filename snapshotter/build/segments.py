"""Where metadata messages are while they are made: a message has up to 260 bytes a file, and an image can have millions."""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path

from snapshotter.build.temporary import no_room

KEPT_MAX = 4 << 20
"""Larger segments are in files, in bytes: those of an image of 30,000 files are not."""


class SegmentFiles:
    """A `format.message.Room` that keeps large segments in unnamed temporary files, and in memory what is being written.

    The files are mapped. All their blocks are there before they are written to: a disk that is full is found out about here,
    where it can be told, and not by a signal.
    """

    def __init__(self, directory: Path | None = None) -> None:
        """`directory`: where files are made; by default, where the system keeps temporary files."""
        self._directory = directory
        self._maps: list[mmap.mmap] = []

    def segment(self, size: int) -> bytearray | mmap.mmap:
        """See `format.message.Room`.

        Raises:
            FailedPreconditionError: there is no room for it.
        """
        if size < KEPT_MAX:
            return bytearray(size)
        try:
            with tempfile.TemporaryFile(dir=self._directory, prefix="puzzlefs-", buffering=0) as file:
                os.posix_fallocate(file.fileno(), 0, size)
                mapped = mmap.mmap(file.fileno(), size)
        except OSError as error:
            raise no_room(error, self._directory) from None
        self._maps.append(mapped)
        return mapped

    def rest(self) -> None:
        """Give the memory back: what was written stays in the files."""
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)
