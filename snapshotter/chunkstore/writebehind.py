"""Writes that happen behind the reads that caused them: a bounded queue and one thread, which waits for a quiet moment.

Making a file takes a process 0.2 ms, and was seen to take up to 1 ms where many were deleted within the last minutes: while a
container starts, that was up to a third of what a worker did, with a container waiting for the same processors. So a chunk is
held until nothing was put or read for a moment, though not for long. What is queued can be read back (`peek`) until it is
written: nobody fetches it again in between, and it need not be read from a file and hashed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from snapshotter.format.digest import Digest

QUEUE_BYTES = 32 << 20
"""Bytes that may wait: what a start of Python with NumPy reads, and a little more."""


@dataclass(frozen=True, slots=True)
class Patience:
    """When what is queued is written: when nothing was put or read for `quiet` seconds, or when it has waited for `longest`.

    All the time while the queue is more than seven eighths full. `look`: seconds after which it is looked whether somebody else
    is in a hurry.
    """

    quiet: float = 0.25
    longest: float = 1.0
    look: float = 0.02


class WriteBehind:
    """Calls `write` for what is `put`, in order, from a thread of its own that is started when first needed.

    `write` must not raise. `hurried` tells whether somebody waits for what is queued to be written.
    """

    def __init__(
        self,
        write: Callable[[Digest, bytes], None],
        max_bytes: int = QUEUE_BYTES,
        *,
        patience: Patience | None = None,
        hurried: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._max_bytes = max_bytes
        self._patience = patience or Patience()
        self._hurried = hurried
        self._clock = clock
        self._condition = threading.Condition()
        self._pending: dict[Digest, tuple[bytes, float]] = {}  # with when it came, in that order; the first is written next
        self._bytes = 0
        self._busy_at = float("-inf")
        self._flushing = 0
        self._thread: threading.Thread | None = None
        self._closed = False

    def put(self, digest: Digest, raw: bytes) -> bool:
        """Queue `raw`. False: the queue is full or closed, and the caller should write it itself."""
        with self._condition:
            if digest in self._pending:
                return True
            if self._closed or self._bytes + len(raw) > self._max_bytes:
                return False
            self._busy_at = self._clock()
            self._pending[digest] = raw, self._busy_at
            self._bytes += len(raw)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="chunk-writer", daemon=True)
                self._thread.start()
            if len(self._pending) == 1 or self._is_nearly_full():  # else it looks by itself
                self._condition.notify_all()
            return True

    def peek(self, digest: Digest) -> bytes | None:
        """The bytes of `digest` if they wait to be written."""
        found = self._pending.get(digest)
        return None if found is None else found[0]

    def busy(self) -> None:
        """Something is read now: what is queued may wait a little."""
        self._busy_at = self._clock()

    def flush(self) -> None:
        """Wait until everything that is queued now or meanwhile has been written."""
        with self._condition:
            self._flushing += 1
            self._condition.notify_all()
            self._condition.wait_for(lambda: not self._pending)
            self._flushing -= 1

    def close(self) -> None:
        """Write what is queued and end the thread. Calling it again does nothing."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._pending or self._closed)
                if not self._pending:
                    return
                digest, (raw, came) = next(iter(self._pending.items()))
                wait = self._wait(came)
                if wait > 0:
                    self._condition.wait(wait)
                    continue
            try:
                self._write(digest, raw)
            finally:
                with self._condition:
                    del self._pending[digest]
                    self._bytes -= len(raw)
                    self._condition.notify_all()

    def _wait(self, came: float) -> float:
        """Seconds to wait before it is looked again whether to write what came at `came`; none if it is to be written now."""
        if self._closed or self._flushing or self._is_nearly_full():
            return 0.0
        now = self._clock()
        left = min(self._busy_at + self._patience.quiet, came + self._patience.longest) - now
        return 0.0 if left <= 0 or self._hurried() else min(left, self._patience.look)

    def _is_nearly_full(self) -> bool:
        return self._bytes > self._max_bytes // 8 * 7
