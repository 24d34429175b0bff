"""How nodes ask each other for cached chunks: a small part of HTTP/1.1 (RFC 9112), the same for who asks and who answers.

::

    GET /puzzlefs/v1/chunks/<sha256 of the raw chunk, 64 hex digits> HTTP/1.1        200 with the raw chunk, or 404, 503
    HEAD …                                                                           the same without the chunk

404: it is not here. 503: this node gives no more away at the moment; who asks goes elsewhere, as after a 404. There is nothing
else to ask for. Connections are kept, and requests may be sent ahead of the answers (pipelining, RFC 9112,
9.3.2): a chunk that is not there costs some hundred bytes and no round trip of its own. What comes from the other side is
hostile until it is checked: lines, headers and their number are bounded here, lengths by whoever reads a body, and everything
has to have come by a time.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Mapping
from typing import NamedTuple

from snapshotter.errors import InvalidError
from snapshotter.format.digest import Digest

PATH = "/puzzlefs/v1/chunks/"
LINE_MAX = 1024
"""Longest line of a request's or an answer's head, in bytes."""
HEADERS_MAX = 32
_RECEIVE = 256 << 10

_REQUEST = re.compile(rb"(GET|HEAD) " + PATH.encode() + rb"([0-9a-f]{64}) HTTP/1\.1\Z")
_STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2})(?: [\x20-\x7e]*)?\Z")
_LENGTH = re.compile(rb"[0-9]{1,10}\Z")


class Head(NamedTuple):
    """The first line of a message, and its headers by their names in lower case."""

    line: bytes
    headers: Mapping[bytes, bytes]

    @property
    def keeps(self) -> bool:
        """Whether the connection goes on after this message."""
        return self.headers.get(b"connection", b"").lower() != b"close"


class Asked(NamedTuple):
    """What a request is for; `body`: not only its length."""

    digest: Digest
    body: bool


class Stream:
    """Heads and bodies out of a socket, all of which must have come by `until` (as `time.monotonic`)."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self.until = float("inf")

    def head(self) -> Head | None:
        """The next message's; None where the other side has ended in order.

        Raises:
            InvalidError: it is no head, or exceeds a bound.
            OSError: the connection broke, or the time is over (TimeoutError).
        """
        first = self._line()
        if first is None:
            return None
        headers: dict[bytes, bytes] = {}
        for _ in range(HEADERS_MAX + 1):
            line = self._line()
            if line is None:
                raise ConnectionError("it ended inside a message's head")
            if not line:
                return Head(first, headers)
            name, colon, value = line.partition(b":")
            if not colon or not name or name != name.strip() or name.lower() in headers:
                raise InvalidError("a header that is none, or comes twice")
            headers[name.lower()] = value.strip()
        raise InvalidError(f"more than {HEADERS_MAX} headers")

    def exactly(self, length: int) -> bytes:
        """The next `length` bytes.

        Raises:
            OSError: as `head`.
        """
        while len(self._buffer) < length:
            if not self._receive():
                raise ConnectionError(f"it ended {length - len(self._buffer)} bytes before the end of a chunk")
        taken = bytes(self._buffer[:length])
        del self._buffer[:length]
        return taken

    def _line(self) -> bytes | None:
        while (end := self._buffer.find(b"\r\n", 0, LINE_MAX + 2)) < 0:
            if len(self._buffer) > LINE_MAX:
                raise InvalidError(f"a line of more than {LINE_MAX} bytes")
            if not self._receive():
                if self._buffer:
                    raise ConnectionError("it ended inside a line")
                return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _receive(self) -> bool:
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("no complete message in time")
        self._sock.settimeout(None if left == float("inf") else left)
        piece = self._sock.recv(_RECEIVE)
        self._buffer += piece
        return bool(piece)


def request(digest: Digest) -> bytes:
    """What asks for a chunk."""
    return f"GET {PATH}{digest.hex()} HTTP/1.1\r\nHost: puzzlefs\r\n\r\n".encode()


def asked(head: Head) -> Asked:
    """What the request with this head is for.

    Raises:
        InvalidError: it is none that there is an answer to.
    """
    match = _REQUEST.match(head.line)
    if match is None or b"transfer-encoding" in head.headers or head.headers.get(b"content-length", b"0") != b"0":
        raise InvalidError("no request for a chunk")
    return Asked(Digest(bytes.fromhex(match[2].decode())), match[1] == b"GET")


def answer(status: int, length: int, *, last: bool = False) -> bytes:
    """The head of an answer whose body has `length` bytes; `last`: the connection ends after it."""
    reason = {200: "OK", 400: "Bad Request", 404: "Not Found", 503: "Service Unavailable"}[status]
    ending = "Connection: close\r\n" if last else ""
    return f"HTTP/1.1 {status} {reason}\r\nContent-Length: {length}\r\n{ending}\r\n".encode()


def answered(head: Head, most: int) -> int | None:
    """How many bytes the body of this answer to `request` has, at most `most`; None: the chunk is not there, or not
    given away now.

    Raises:
        InvalidError: it is no answer to a request for a chunk.
    """
    status = _STATUS.match(head.line)
    length = head.headers.get(b"content-length", b"")
    if status is None or not _LENGTH.match(length) or b"transfer-encoding" in head.headers:
        raise InvalidError("it answers as no node's cache does")
    if status[1] in (b"404", b"503") and length == b"0":
        return None
    if status[1] != b"200" or not 0 < int(length) <= most:
        raise InvalidError(f"it answers {status[1].decode()} with {int(length)} bytes to a request for a chunk")
    return int(length)
