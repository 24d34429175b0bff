"""Writes that happen beside the read that caused them: a bounded queue and one thread.

What is queued can be read back (`peek`) until it is written, so that nobody fetches it again in between.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from snapshotter.format.digest import Digest

QUEUE_BYTES = 8 << 20
"""Bytes that may wait: a third of a second of a 200 Mbit/s link; writing a 64 KiB chunk takes about 0.1 ms."""


class WriteBehind:
    """Calls `write` for what is `put`, in order, from a thread of its own that is started when first needed.

    `write` must not raise.
    """

    def __init__(self, write: Callable[[Digest, bytes], None], max_bytes: int = QUEUE_BYTES) -> None:
        self._write = write
        self._max_bytes = max_bytes
        self._condition = threading.Condition()
        self._pending: dict[Digest, bytes] = {}  # in order of arrival; the first one is being written
        self._bytes = 0
        self._thread: threading.Thread | None = None
        self._closed = False

    def put(self, digest: Digest, raw: bytes) -> bool:
        """Queue `raw`. False: the queue is full or closed, and the caller should write it itself."""
        with self._condition:
            if digest in self._pending:
                return True
            if self._closed or self._bytes + len(raw) > self._max_bytes:
                return False
            self._pending[digest] = raw
            self._bytes += len(raw)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="chunk-writer", daemon=True)
                self._thread.start()
            self._condition.notify_all()
            return True

    def peek(self, digest: Digest) -> bytes | None:
        """The bytes of `digest` if they wait to be written."""
        return self._pending.get(digest)

    def flush(self) -> None:
        """Wait until everything that is queued now or meanwhile has been written."""
        with self._condition:
            self._condition.wait_for(lambda: not self._pending)

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
                digest, raw = next(iter(self._pending.items()))
            try:
                self._write(digest, raw)
            finally:
                with self._condition:
                    del self._pending[digest]
                    self._bytes -= len(raw)
                    self._condition.notify_all()
