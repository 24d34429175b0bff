"""Turns what a mount could not serve into reports with names in them, without holding up who was serving."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from snapshotter.format.printable import printable
from snapshotter.mount.session import Failure
from snapshotter.mount.tree import Tree

REPORTS_PER_SECOND = 10
"""Beyond that reports of a mount are counted, not made: a registry that is gone fails every read of every process."""
_QUEUE_MAX = 1000


class FailureReport(NamedTuple):
    """A failure as it is logged. `suppressed` counts those of the same mount that were not reported since the last one."""

    mount: str
    path: str
    ino: int
    offset: int
    length: int
    error: str
    error_type: str
    suppressed: int

    def __str__(self) -> str:
        """One line for a log, whatever the image's file names hold. `error` names the chunk and the host."""
        more = f" ({self.suppressed} more like it)" if self.suppressed else ""
        line = f"read failed: {self.mount}, file {self.path}, bytes {self.offset}+{self.length}: {self.error}{more}"
        return printable(line)


class FailureReporter:
    """Reports failures to `sink` from a thread of its own: finding a path may take a walk, and a sink may block.

    Safe to use from several threads. `close` ends the thread after what is queued.
    """

    def __init__(self, sink: Callable[[FailureReport], None], clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds, for the limit on reports."""
        self._sink = sink
        self._clock = clock
        self._queue: queue.Queue[tuple[str, Tree, Failure, int] | None] = queue.Queue(_QUEUE_MAX)
        self._windows: dict[str, tuple[float, int, int]] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="failures", daemon=True)
        self._thread.start()

    def report(self, mount: str, tree: Tree, failure: Failure) -> None:
        """Report a failure of `mount` soon; returns at once."""
        suppressed = self._admit(mount)
        if suppressed is None:
            return
        try:
            self._queue.put_nowait((mount, tree, failure, suppressed))
        except queue.Full:
            return

    def close(self) -> None:
        """Report what is queued, then end."""
        self._queue.put(None)
        self._thread.join()

    def _admit(self, mount: str) -> int | None:
        """How many of this mount's failures were suppressed before this one; None if this one is to be, too."""
        now = self._clock()
        with self._lock:
            start, reported, suppressed = self._windows.get(mount, (now, 0, 0))
            if now - start >= 1:
                start, reported = now, 0
            if reported >= REPORTS_PER_SECOND:
                self._windows[mount] = (start, reported, suppressed + 1)
                return None
            self._windows[mount] = (start, reported + 1, 0)
            return suppressed

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            mount, tree, failure, suppressed = item
            try:
                path = tree.path(failure.ino).decode(errors="backslashreplace")
            except Exception:  # the tree may have been closed meanwhile; a report without a path is better than none
                path = f"inode {failure.ino}"
            error = failure.error
            self._sink(
                FailureReport(
                    mount, path, failure.ino, failure.offset, failure.length, str(error), type(error).__name__, suppressed
                )
            )
