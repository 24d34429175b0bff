"""An HTTP proxy before a real registry that misbehaves by a seed: the same seed and the same requests give the same faults.

Between faults it is honest, and `behaving` makes it honest for a while. Everything that it does wrong is something that servers
and networks do: see `FAULTS`.
"""

from __future__ import annotations

import collections
import contextlib
import http.client
import http.server
import random
import re
import socket
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

FAULTS = (
    "delay",  # the answer comes late
    "stall",  # no answer
    "stall in the body",
    "drip",  # a few bytes now and then
    "cut",  # the connection ends within the body
    "short",  # fewer bytes, and their number is announced
    "corrupt",  # a byte is another one
    "refuse",  # the connection is reset before any answer
    "close",  # the connection ends after the answer, unannounced
    "garbage",  # not HTTP
    "whole",  # 200 and everything, to a request for a range
    "wrong range",  # 206 with another range than was asked for
    "redirect",  # 307 to another host, which must not be sent Authorization
    "401",
    "403",
    "404",
    "408",
    "416",
    "429",
    "500",
    "502",
    "503",
    "504",
)
_PIECE = 64 << 10
_RANGE = re.compile(r"bytes=(\d+)-(\d+)\Z")
_PASSED_ON = ("accept", "authorization", "range", "content-type", "content-length")
_PASSED_BACK = (
    "content-type",
    "content-range",
    "docker-content-digest",
    "location",
    "www-authenticate",
    "link",
    "accept-ranges",
)


class FaultProxy:
    """Listens at `address`; of the answers that `upstream` gives to GET, one in `1 / rate` goes wrong.

    `stall` is how many seconds a silent server stays silent, `faults` are those that happen. `done` counts what was done to
    requests, by fault, and ``good``.
    """

    def __init__(self, upstream: tuple[str, int], seed: int, rate: float = 0.3, stall: float = 20.0) -> None:
        self.upstream = upstream
        self.rate = rate
        self.stall = stall
        self.faults: Sequence[str] = FAULTS
        self.done: collections.Counter[str] = collections.Counter()
        self.leaked: list[str] = []
        """Requests that brought Authorization to the host that was only redirected to."""
        self.closing = threading.Event()
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._servers = [_Server(self, storage) for storage in (False, True)]
        self.address, self.storage = (f"127.0.0.1:{server.server_address[1]}" for server in self._servers)
        self._threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in self._servers]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Cut all connections and wait for the threads."""
        self.closing.set()
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.cut()
            server.server_close()

    @contextlib.contextmanager
    def behaving(self) -> Iterator[None]:
        """No faults meanwhile."""
        rate, self.rate = self.rate, 0.0
        try:
            yield
        finally:
            self.rate = rate

    def choose(self) -> tuple[str, random.Random]:
        """What to do to the next request, and the randomness for its details."""
        with self._lock:
            fault = self._random.choice(self.faults) if self._random.random() < self.rate else "good"
            self.done[fault] += 1
            return fault, random.Random(self._random.random())


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 128

    def __init__(self, proxy: FaultProxy, storage: bool) -> None:
        self.proxy = proxy
        self.storage = storage
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with self._guard:
            self._open.add(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._guard:
                self._open.discard(request)

    def cut(self) -> None:
        with self._guard:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what this is about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        pass

    def do_GET(self) -> None:
        proxy = self.server.proxy
        if self.server.storage and "authorization" in self.headers:
            proxy.leaked.append(self.path)
        fault, chance = proxy.choose() if self.command == "GET" else ("good", random.Random(0))
        if fault == "redirect" and self.server.storage:
            fault = "good"
        if fault in ("delay", "stall") and proxy.closing.wait(chance.uniform(0.05, 0.5) if fault == "delay" else proxy.stall):
            return
        if fault in ("stall", "refuse"):
            # an RST in place of a FIN
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
        elif fault == "garbage":
            self.wfile.write(b"\x16\x03\x01 who goes there?\r\n\r\n")
            self.close_connection = True
        elif fault == "redirect":
            self._send(307, b"", {"Location": f"http://{proxy.storage}{self.path}"})
        elif fault.isdigit():
            headers = {"Retry-After": "1"} if fault in ("429", "503") else {}
            self._send(int(fault), b'{"errors":[{"code":"FAULT","message":"so it is"}]}', headers)
        else:
            self._pass_on(fault, chance)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_GET  # noqa: N815 (the base class calls these names)

    def _pass_on(self, fault: str, chance: random.Random) -> None:
        asked = {key: value for key, value in self.headers.items() if key.lower() in _PASSED_ON}
        match = _RANGE.match(self.headers.get("Range", ""))
        if match and fault == "whole":
            asked.pop("Range")
        if match and fault == "wrong range":
            asked["Range"] = f"bytes={int(match[1]) + 1}-{int(match[2]) + 1}"
        upstream = http.client.HTTPConnection(*self.server.proxy.upstream, timeout=30)
        try:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            upstream.request(self.command, self.path, body or None, asked)
            answer = upstream.getresponse()
            content = answer.read()
            headers = {key: value for key, value in answer.getheaders() if key.lower() in _PASSED_BACK}
            if self.command == "HEAD":
                headers["Content-Length"] = answer.getheader("Content-Length", "0")
        except OSError:
            self._send(502, b"", {})
            return
        finally:
            upstream.close()
        self._misbehave(fault, chance, answer.status, content, headers)

    def _misbehave(self, fault: str, chance: random.Random, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        at = chance.randrange(len(content)) if content else 0
        if fault == "corrupt" and content:
            content = content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :]
        if fault == "short":
            content = content[:at]
        if fault in ("stall in the body", "drip", "cut"):
            self._head(status, {"Content-Length": str(len(content)), **headers})
            self._write(content[:at])
            if fault == "stall in the body":
                self.server.proxy.closing.wait(self.server.proxy.stall)
            elif fault == "drip":
                for place in range(at, len(content), 3):
                    if self.server.proxy.closing.wait(0.02):
                        break
                    self._write(content[place : place + 3])
            self.close_connection = True
            return
        self._send(status, content, headers)
        if fault == "close":
            self.close_connection = True

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self._head(status, {"Content-Length": str(len(content)), **headers})
        if self.command != "HEAD":
            self._write(content)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def _write(self, content: bytes) -> None:
        for start in range(0, len(content), _PIECE):
            self.wfile.write(content[start : start + _PIECE])
