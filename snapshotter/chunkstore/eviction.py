"""Keeps the cache under its cap: what goes, `reserve` decides.

There is no list of files in memory or on disk: a pass walks the directory, adds up what is there, and remembers a bounded
number of the oldest names, so memory does not grow with the cache. Usage counts allocated blocks, what ``du`` says.
Between passes each process adds what it writes itself; a pass is made again after a thirty-second of the cap at the latest,
which bounds how far several processes together can be above it. A lock file keeps two processes from evicting at once. What
one process's containers have read, another one sees by the files' times.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from snapshotter.chunkstore import reserve
from snapshotter.chunkstore.chunkfiles import files
from snapshotter.chunkstore.reserve import CachedFile, Cap, Census
from snapshotter.chunkstore.stats import Count, Stats

log = logging.getLogger(__name__)


class Evictor:
    """Watches the directory `path`; `added` says that this process has written something."""

    def __init__(
        self, path: Path, cap: Cap, stats: Stats, *, clock: Callable[[], float] = time.time, batch: int = reserve.BATCH
    ) -> None:
        """`clock` gives seconds since 1970, `batch` is how many files one walk may remove."""
        self._path = path
        self._cap = cap
        self._stats = stats
        self._clock = clock
        self._batch = batch
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
            due = self._unseen >= self._cap.max_bytes // 32
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
            census = self._census()
            if census.used <= self._cap.max_bytes:
                return census.used
            while True:
                left = self._evict(census)
                if left <= self._cap.goal or left == census.used:
                    return left
                census = self._census()

    def close(self) -> None:
        """End the thread. Calling it again does nothing."""
        self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def _census(self) -> Census:
        census = Census(self._cap, self._clock(), self._batch)
        for path, status in files(os.fspath(self._path)):
            census.add(CachedFile(path, status.st_blocks * 512, max(status.st_atime, status.st_mtime), status.st_mtime))
        return census

    def _evict(self, census: Census) -> int:
        """Evict its victims; the bytes in use then."""
        used, now = census.used, self._clock()
        for file in census.victims():
            if self._closed:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file.path)
                self._stats.add(Count.EVICTIONS)
                self._stats.add(Count.EVICTED_BYTES, file.size)
                if reserve.is_recent(file.read, now):
                    self._stats.add(Count.EVICTED_RECENT_BYTES, file.size)
            used -= file.size
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
                log.warning(
                    "cannot keep the chunk cache %s under its cap of %d bytes: %s", self._path, self._cap.max_bytes, error
                )
