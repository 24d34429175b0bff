"""Ends requests that take too long as a whole.

A socket's time-out bounds the silence between two pieces; a server that sends a byte a second never reaches it. So every
request is watched: when its time is over, its connection is shut down, whereupon whoever reads from it gets an error. One
thread watches all requests; it starts with the first and ends when there has been none for a while.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import socket
import threading
import time
from typing import Protocol

MINIMUM_RATE = 32 << 10
"""Bytes a second below which an answer is not worth waiting for, once its first time is over."""
IDLE = 5.0
"""Seconds without any request after which the thread ends."""


class Connection(Protocol):
    """What a request is sent through."""

    sock: socket.socket | None


class Watch:
    """One request. `seconds` until it is ended, and one more for each `MINIMUM_RATE` bytes that come; `at_most` in any case."""

    def __init__(self, seconds: float, at_most: float = float("inf")) -> None:
        self.started = time.monotonic()
        self.seconds = min(seconds, at_most)
        self._limit = self.started + at_most
        self.until = self.started + self.seconds
        self.expired = False
        self.ended = False
        self.connection: Connection | None = None
        self.sock: socket.socket | None = None
        """The connection's socket once it is known: http.client forgets it when an answer is the last one."""

    def received(self, total: int) -> None:
        """`total` bytes have come so far."""
        self.until = min(self._limit, self.started + self.seconds + total / MINIMUM_RATE)

    def end(self) -> None:
        """The request is over."""
        self.ended = True

    def expire(self) -> None:
        """Cut the connection."""
        self.expired = True
        sock = self.sock or (self.connection.sock if self.connection is not None else None)
        if sock is not None:
            with contextlib.suppress(OSError):
                # The base class's: that of a TLS socket would pull its state from under the thread that reads.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


class Watchdog:
    """Watches requests. Safe for use by many threads."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._heap: list[tuple[float, int, Watch]] = []
        self._serial = itertools.count()
        self._thread: threading.Thread | None = None

    def watch(self, watch: Watch) -> Watch:
        """Have `watch` expire when its time is over, unless it has ended by then."""
        with self._lock:
            first = not self._heap or watch.until < self._heap[0][0]
            heapq.heappush(self._heap, (watch.until, next(self._serial), watch))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="request-watchdog", daemon=True)
                self._thread.start()
            elif first:
                self._lock.notify()
        return watch

    def _run(self) -> None:
        idle_since = time.monotonic()
        while True:
            with self._lock:
                while self._heap and self._heap[0][2].ended:
                    heapq.heappop(self._heap)
                now = time.monotonic()
                if self._heap:
                    idle_since = now
                elif now - idle_since >= IDLE:
                    self._thread = None
                    return
                until = self._heap[0][0] if self._heap else idle_since + IDLE
                if until > now:
                    self._lock.wait(until - now)
                    continue
                _, _, watch = heapq.heappop(self._heap)
                if watch.until > now:
                    heapq.heappush(self._heap, (watch.until, next(self._serial), watch))
                    continue
            if not watch.ended:
                watch.expire()
