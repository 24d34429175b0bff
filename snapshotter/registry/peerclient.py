"""Asks one other node for chunks of its cache, over a few kept connections (see `peerprotocol`)."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

from snapshotter.errors import InvalidError
from snapshotter.format.digest import Digest
from snapshotter.format.model import CHUNK_MAX
from snapshotter.registry import peerprotocol
from snapshotter.registry.failures import RegistryUnavailableError
from snapshotter.registry.peerprotocol import Stream

KEPT_MAX = 4
"""Idle connections that are kept to one node."""
KEPT_SECONDS = 5.0
"""How long; less than the other side waits for a request."""


class Address(NamedTuple):
    """Where a node answers."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Budget:
    """Time that may be spent on waiting for nodes. What whoever takes the chunks does in between does not count: a slow
    disk here is no node's fault."""

    def __init__(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds
        """When it is used up (as `time.monotonic`), if nobody takes longer."""

    @property
    def left(self) -> float:
        """Seconds; not above 0 when it is used up."""
        return self.until - time.monotonic()

    def extend(self, seconds: float) -> None:
        """So much more time may be spent."""
        self.until += seconds

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """No time passes inside the block."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.until += time.monotonic() - began


class _Connection:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.stream = Stream(sock)
        self.since = time.monotonic()
        """When it became idle."""
        self.goes_on = True
        """Whether the other side keeps it too."""


class PeerClient:
    """The node at `address`. `tls` makes the context of a connection; None is plain HTTP. Safe for use by many threads."""

    def __init__(self, address: Address, tls: Callable[[], ssl.SSLContext] | None = None) -> None:
        self._address = address
        self._tls = tls
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []
        self._closed = False

    def ask(self, digests: Sequence[Digest], budget: Budget) -> Generator[bytes | None, None, None]:
        """For each of `digests`, in their order, the bytes that the node has under it, unverified, or None if it has none. All
        are asked for in one go, and must have come before `budget` is used up.

        Raises:
            RegistryUnavailableError: it does not answer, or not in time, or not as a node does; whatever came before is right.
        """
        count = 0
        try:
            for fresh in (False, True):
                connection = self._take(budget, fresh=fresh)
                if connection is None:
                    continue
                with self._given_back(connection) as keep:
                    try:
                        for raw in _exchange(connection, digests, budget):
                            count += 1
                            yield raw
                        if connection.goes_on:
                            keep.append(connection)
                        return
                    except (ConnectionError, ssl.SSLEOFError):
                        # A kept connection may have been closed by the other side a moment ago, as any HTTP client knows.
                        if fresh or count:
                            raise
        except TimeoutError as error:
            raise RegistryUnavailableError(f"node {self._address}: no complete answer in time") from error
        except InvalidError as error:
            raise RegistryUnavailableError(f"node {self._address}: {error}", retryable=False) from error
        except OSError as error:
            raise RegistryUnavailableError(f"node {self._address}: {error.strerror or error}") from error

    def close(self) -> None:
        """Close idle connections; those in use are closed when they are given back. Calling it again does nothing."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.sock.close()

    def _take(self, budget: Budget, *, fresh: bool) -> _Connection | None:
        """A kept connection or None, or a `fresh` one."""
        if fresh:
            return self._connect(budget)
        expired: list[_Connection] = []
        try:
            with self._lock:
                while self._idle:
                    connection = self._idle.pop()
                    if time.monotonic() - connection.since < KEPT_SECONDS:
                        return connection
                    expired.append(connection)
        finally:
            for old in expired:
                old.sock.close()
        return None

    def _connect(self, budget: Budget) -> _Connection:
        if budget.left <= 0:
            raise TimeoutError
        sock = socket.create_connection(self._address, timeout=budget.left)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                sock.settimeout(max(0.001, budget.left))
                sock = self._tls().wrap_socket(sock)
            return _Connection(sock)
        except BaseException:
            sock.close()
            raise

    @contextlib.contextmanager
    def _given_back(self, connection: _Connection) -> Iterator[list[_Connection]]:
        """Closes `connection` after the block, unless that has put it into the list that it is given: then it is kept."""
        keep: list[_Connection] = []
        try:
            yield keep
        finally:
            with self._lock:
                kept = bool(keep) and not self._closed and len(self._idle) < KEPT_MAX
                if kept:
                    connection.since = time.monotonic()
                    self._idle.append(connection)
            if not kept:
                connection.sock.close()


def _exchange(connection: _Connection, digests: Sequence[Digest], budget: Budget) -> Iterator[bytes | None]:
    """The answers, and whether the connection goes on after the last one."""
    stream = connection.stream
    connection.sock.settimeout(max(0.001, budget.left))
    connection.sock.sendall(b"".join(peerprotocol.request(digest) for digest in digests))
    for _ in digests:
        stream.until = budget.until
        head = stream.head()
        if head is None:
            raise ConnectionError("it ended before the answer")
        length = peerprotocol.answered(head, CHUNK_MAX)
        connection.goes_on = head.keeps
        raw = None if length is None else stream.exactly(length)
        with budget.stopped():
            yield raw
