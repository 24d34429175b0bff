"""Threads for reads that wait: started when there is work for them, and never lost to work that nobody waits for any more.

Beside `concurrent.futures`, which makes an object with a condition variable for every job (15 µs of the event loop's time, here
it is 1), and whose number of threads is fixed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

LENT_MAX = 192
"""Threads beyond a pool's size that may replace ones which are held up by abandoned work."""

_log = logging.getLogger(__name__)


class Pool:
    """Runs jobs on at most `size` threads, in the order of their coming. Safe to use from several threads.

    A job that runs and whose result nobody wants is abandoned by `lend`: it is left to end, since others may profit from what
    it brings, but another thread takes its place until `give_back`.
    """

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._pending = 0
        self._lent = 0

    def submit(self, job: Callable[[], None]) -> None:
        """Run `job` as soon as a thread is free. What it raises is logged."""
        with self._lock:
            self._pending += 1
            self._grow()
        self._queue.put(job)

    def lend(self) -> bool:
        """A running job is abandoned; whether its thread is replaced. If so, the job has to `give_back` at its end."""
        with self._lock:
            if self._lent == LENT_MAX:
                return False
            self._lent += 1
            self._grow()
            return True

    def give_back(self) -> None:
        """A job that was abandoned is at its end."""
        with self._lock:
            self._lent -= 1

    def close(self) -> None:
        """Run what was submitted, then end the threads. Nothing may be submitted afterwards."""
        with self._lock:
            threads = list(self._threads)
        for _ in threads:
            self._queue.put(None)
        for thread in threads:
            thread.join()

    def _grow(self) -> None:
        """One thread more if there is work for it. The lock is held."""
        running = len(self._threads)
        if running < self._pending and running < self._size + self._lent:
            # daemon: none of them keeps a process alive that has failed elsewhere; `close` waits for all
            thread = threading.Thread(target=self._run, name=f"{self._name}-{running}", daemon=True)
            self._threads.add(thread)
            thread.start()

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            try:
                job()
            except Exception:
                _log.exception("a job of the threads %r failed", self._name)
            with self._lock:
                self._pending -= 1
                if len(self._threads) > self._size + self._lent:
                    self._threads.remove(threading.current_thread())
                    return
