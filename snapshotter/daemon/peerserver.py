"""Gives other nodes chunks of this node's cache, and nothing else (`registry.peerprotocol`).

A chunk can be asked for by its digest alone; there is no list, and nothing tells for which image a chunk is here. A file is
sent by the kernel (sendfile(2)), or under TLS in blocks, so what a connection takes is a thread and a buffer. Connections are
few and have an end: who is silent, slow or wrong is cut off. What exceeds an allowance is declined at once and not delayed:
another node or the registry has it too, and whoever waits here would give this node up.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from snapshotter.chunkstore.stats import Count, Stats
from snapshotter.daemon.allowance import Allowance
from snapshotter.errors import FailedPreconditionError, InvalidError
from snapshotter.format.digest import Digest
from snapshotter.registry import peerprotocol
from snapshotter.registry.peerclient import Address
from snapshotter.registry.peerprotocol import Stream
from snapshotter.registry.watchdog import Watch, Watchdog

CONNECTIONS_MAX = 128
"""Connections at once; a further one is closed at once, whereupon the node that made it asks elsewhere."""
IDLE = 10.0
"""Seconds that a connection may be without a request, TLS included."""
LIFETIME = 60.0
"""Seconds after which a connection is closed with the next answer; after twice as many it is cut, whoever is slow on it."""
_BLOCK = 256 << 10
_BACKLOG = 64

_log = logging.getLogger(__name__)

Opened = Callable[[Digest], AbstractContextManager[tuple[int, int] | None]]
"""Opens a chunk's file: a descriptor at its start and its size, None where there is none (`ChunkCache.opened`)."""


class PeerServer:
    """Serves what `opened` finds at `address`, as much as `allowance` lets it; None is no bound. `tls` makes the context of a
    connection; None is plain HTTP."""

    def __init__(
        self,
        address: Address,
        opened: Opened,
        *,
        stats: Stats,
        tls: Callable[[], ssl.SSLContext] | None = None,
        allowance: Allowance | None = None,
    ) -> None:
        """Listens at once.

        Raises:
            FailedPreconditionError: it cannot.
        """
        self._opened = opened
        self._stats = stats
        self._tls = tls
        self._allowance = allowance
        self._watchdog = Watchdog()
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._closed = False
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        try:
            self._listener = socket.create_server(address, family=family, backlog=_BACKLOG)
        except OSError as error:
            raise FailedPreconditionError(f"cannot serve other nodes at {address}: {error.strerror or error}") from None
        host, port = self._listener.getsockname()[:2]
        self.address = Address(host, port)
        """Where it listens."""
        self._acceptor = threading.Thread(target=self._accept, name="peers", daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """Stop listening and cut all connections. Calling it again does nothing."""
        with self._lock:
            self._closed = True
            connections = dict(self._connections)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in connections:
            _cut(sock)
        for thread in (self._acceptor, *connections.values()):
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                if self._closed:
                    return
                _log.warning("cannot take a connection of another node: %s", error.strerror or error)
                time.sleep(0.1)  # most likely there are no descriptors: nothing is gained by asking at once
                continue
            with self._lock:
                if self._closed or len(self._connections) >= CONNECTIONS_MAX:
                    sock.close()
                    continue
                thread = threading.Thread(target=self._serve, args=(sock,), name="peer", daemon=True)
                self._connections[sock] = thread
                thread.start()

    def _serve(self, sock: socket.socket) -> None:
        watch = Watch(2 * LIFETIME)
        watch.sock = sock
        self._watchdog.watch(watch)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(IDLE)
            if self._tls is None:
                self._answer_all(sock, watch)
            else:
                # The plain socket stays the one that is cut: the TLS one is this thread's.
                with self._tls().wrap_socket(sock.dup(), server_side=True) as secure:
                    self._answer_all(secure, watch)
        except (OSError, ValueError) as error:
            _log.debug("a connection of another node ended: %s", error)
        except Exception:
            _log.exception("serving another node failed")
        finally:
            watch.end()
            with self._lock:
                self._connections.pop(sock, None)
            sock.close()

    def _answer_all(self, sock: socket.socket, watch: Watch) -> None:
        stream = Stream(sock)
        while True:
            stream.until = time.monotonic() + IDLE
            try:
                head = stream.head()
                if head is None:
                    return
                asked = peerprotocol.asked(head)
            except InvalidError as error:
                _log.debug("a node is refused: %s", error)
                sock.sendall(peerprotocol.answer(400, 0, last=True))
                return
            sock.settimeout(IDLE)
            last = not head.keeps or time.monotonic() - watch.started > LIFETIME
            with self._opened(asked.digest) as found:
                if found is None:
                    sock.sendall(peerprotocol.answer(404, 0, last=last))
                elif asked.body and self._allowance is not None and not self._allowance.take(found[1]):
                    sock.sendall(peerprotocol.answer(503, 0, last=last))
                    self._stats.add(Count.DECLINED)
                else:
                    descriptor, size = found
                    sock.sendall(peerprotocol.answer(200, size, last=last))
                    if asked.body:
                        _send(sock, descriptor, size)
                        self._stats.add(Count.SERVED)
                        self._stats.add(Count.SERVED_BYTES, size)
            if last:
                return


def _send(sock: socket.socket, descriptor: int, size: int) -> None:
    """The whole file; one that has become shorter ends the connection, since the other side waits for the rest."""
    if isinstance(sock, ssl.SSLSocket):
        left = size
        while left and (block := os.read(descriptor, min(left, _BLOCK))):
            sock.sendall(block)
            left -= len(block)
    else:
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            left = size - sock.sendfile(file, count=size)
    if left:
        raise ConnectionError("a chunk's file has been cut")


def _cut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
