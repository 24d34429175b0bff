"""Keeps the cache under its cap by removing what was used longest ago.

There is no list of files in memory or on disk: a pass walks the directory, adds up what is there, and keeps the
`BATCH` oldest names in a heap, so memory does not grow with the cache. Usage counts allocated blocks, what ``du`` says.
Between passes each process adds what it writes itself; a pass is made again after a thirty-second of the cap at the latest,
which bounds how far several processes together can be above it. A lock file keeps two processes from evicting at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from snapshotter.chunkstore.directory import TEMPORARY
from snapshotter.chunkstore.stats import Count, Stats

log = logging.getLogger(__name__)

BATCH = 4096
"""Files that one walk may remove (about 256 MiB of average chunks); more are removed by walking again."""

LOW_WATER = 0.9
"""Part of the cap down to which a pass evicts, so that passes are rare."""


class Evictor:
    """Watches the directory `path`; `added` says that this process has written something."""

    def __init__(self, path: Path, max_bytes: int, stats: Stats, *, low_water: float = LOW_WATER) -> None:
        """`low_water` is the part of `max_bytes` down to which a pass evicts."""
        self._path = path
        self._max_bytes = max_bytes
        self._low_water = low_water
        self._stats = stats
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._closed = False
        self._unseen = 0  # bytes written here since the last pass
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Make a first pass now and further ones when needed, in the background."""
        self._wake.set()
        self._thread = threading.Thread(target=self._run, name="chunk-evictor", daemon=True)
        self._thread.start()

    def added(self, count: int) -> None:
        """This process has written `count` bytes."""
        with self._lock:
            self._unseen += count
            due = self._unseen >= self._max_bytes // 32
        if due:
            self._wake.set()

    def sweep(self) -> int:
        """Make one pass: evict until the cap holds. Returns the bytes in use afterwards.

        Raises:
            OSError: the directory cannot be read or its lock file not be made.
        """
        with self._lock:
            self._unseen = 0
        os.makedirs(self._path, mode=0o700, exist_ok=True)
        with open(self._path / ".evict.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            while True:
                used, oldest = _survey(self._path)
                if used <= self._max_bytes or not oldest or self._closed:
                    return used
                used = self._evict(used, oldest)
                if used <= self._max_bytes * self._low_water:
                    return used

    def close(self) -> None:
        """End the thread. Calling it again does nothing."""
        self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def _evict(self, used: int, oldest: list[tuple[float, int, str]]) -> int:
        goal = self._max_bytes * self._low_water
        for _, size, path in oldest:
            if used <= goal or self._closed:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
                self._stats.add(Count.EVICTIONS)
                self._stats.add(Count.EVICTED_BYTES, size)
            used -= size
        return used

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._closed:
                return
            try:
                self.sweep()
            except OSError as error:
                log.warning("cannot keep the chunk cache %s under its cap of %d bytes: %s", self._path, self._max_bytes, error)


def _survey(path: Path) -> tuple[int, list[tuple[float, int, str]]]:
    """Bytes in use below `path`, and the files used longest ago, oldest first: (access time, bytes, path)."""
    used = 0
    newest_first: list[tuple[float, int, str]] = []
    for entry in _files(path):
        with contextlib.suppress(FileNotFoundError):
            status = entry.stat(follow_symlinks=False)
            size = status.st_blocks * 512
            used += size
            item = (-status.st_atime, size, entry.path)
            if len(newest_first) < BATCH:
                heapq.heappush(newest_first, item)
            else:
                heapq.heappushpop(newest_first, item)
    return used, sorted((-when, size, name) for when, size, name in newest_first)


def _files(path: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(path) as directories:
        for directory in directories:
            if directory.name == TEMPORARY or not directory.is_dir(follow_symlinks=False):
                continue
            with contextlib.suppress(FileNotFoundError), os.scandir(directory.path) as entries:
                yield from entries
