"""The threads that fetch and decode: a few for what somebody waits for, fewer for what may be wanted next.

Two pools, so that reading ahead can never stand in the way of a read; and reading ahead is only ever begun where a thread is
free at once (`try_beside`), so that whoever comes to wait for such a chunk waits for a transfer and not for a queue.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

FETCHING = 8
"""Requests for waiting reads, besides those that the readers' own threads make."""

BESIDE = 2
"""Requests for reading ahead."""


class FetchPool:
    """Threads for the requests of all chains of a process."""

    def __init__(self, fetching: int = FETCHING, beside: int = BESIDE) -> None:
        self.now = ThreadPoolExecutor(fetching, thread_name_prefix="chunk-fetch")
        self._beside = ThreadPoolExecutor(beside, thread_name_prefix="chunk-ahead")
        self._lock = threading.Lock()
        self._free = beside
        self._closed = False

    def take_beside(self, most: int) -> int:
        """Reserve up to `most` free threads for reading ahead; each is given back by `run_beside` or `give_beside`."""
        with self._lock:
            taken = 0 if self._closed else min(most, self._free)
            self._free -= taken
            return taken

    def give_beside(self, count: int) -> None:
        """Give back reserved threads that are not needed."""
        with self._lock:
            self._free += count

    def run_beside(self, task: Callable[[], None]) -> None:
        """Run `task` on a reserved thread. It is run by the caller if the pool has been closed meanwhile."""

        def run() -> None:
            try:
                task()
            finally:
                self.give_beside(1)

        try:
            self._beside.submit(run)
        except RuntimeError:
            run()

    def run_now(self, task: Callable[[], None]) -> None:
        """Run `task` as soon as a thread is free; by the caller if the pool is closed."""
        try:
            # with the caller's deadline: it waits for this
            self.now.submit(contextvars.copy_context().run, task)
        except RuntimeError:
            task()

    def close(self) -> None:
        """Wait for what has begun and end the threads. Calling it again does nothing."""
        with self._lock:
            self._closed = True
        self.now.shutdown()
        self._beside.shutdown()
