"""A TCP relay that counts bytes: how much a registry sent is then counted the same way for every client."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

_PIECE = 256 * 1024


class Relay:
    """Listens on a free loopback port and passes every connection on to `upstream`.

    `received` counts the bytes of the upstream's answers (HTTP headers included), `sent` those of the clients' requests,
    `connections` the connections, since `reset`.
    """

    def __init__(self, upstream: tuple[str, int], delay: float = 0.0) -> None:
        """`delay`: seconds by which every piece of a request comes later, and so every answer."""
        self.upstream = upstream
        self._delay = delay
        self.received = self.sent = self.connections = 0
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._sockets: set[socket.socket] = set()
        self.port = 0
        self._open()

    def _open(self) -> None:
        self._closed = False
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self.port = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name="relay", daemon=True)
        self._acceptor.start()

    @contextlib.contextmanager
    def gone(self) -> Iterator[None]:
        """Nobody reaches the upstream meanwhile: connections are cut, new ones are refused."""
        self.close()
        try:
            yield
        finally:
            self._open()

    @property
    def address(self) -> str:
        """``127.0.0.1:PORT``"""
        return f"127.0.0.1:{self.port}"

    def reset(self) -> None:
        """Count from 0 again."""
        with self._lock:
            self.received = self.sent = self.connections = 0

    def close(self) -> None:
        """Cut every connection, refuse new ones, and wait for the threads."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            sockets, threads = list(self._sockets), list(self._threads)
        for connection in sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in [self._acceptor, *threads]:
            thread.join()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,), name="relay", daemon=True)
            with self._lock:
                self.connections += 1
                self._threads.add(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client, socket.create_connection(self.upstream, timeout=10) as server:
                server.settimeout(None)
                for each in (client, server):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self._sockets |= {client, server}
                    if self._closed:
                        return
                try:
                    back = threading.Thread(target=self._copy, args=(server, client, "received"), name="relay", daemon=True)
                    back.start()
                    self._copy(client, server, "sent")
                    back.join()
                finally:
                    with self._lock:
                        self._sockets -= {client, server}
        except OSError:
            pass
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _copy(self, source: socket.socket, target: socket.socket, counter: str) -> None:
        buffer = memoryview(bytearray(_PIECE))
        with contextlib.suppress(OSError):
            while size := source.recv_into(buffer):
                if self._delay and counter == "sent":
                    time.sleep(self._delay)
                target.sendall(buffer[:size])
                with self._lock:
                    setattr(self, counter, getattr(self, counter) + size)
        # one side is done: let the other see it, also when it is blocked in a write
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            source.shutdown(socket.SHUT_RD)
