"""What a request for another node's chunk is, and what an answer: everything else is refused."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from snapshotter.errors import InvalidError
from snapshotter.format.digest import sha256
from snapshotter.registry import peerprotocol
from snapshotter.registry.peerprotocol import HEADERS_MAX, LINE_MAX, Asked, Head, Stream

DIGEST = sha256(b"chunk")
PATH = f"/puzzlefs/v1/chunks/{DIGEST.hex()}"


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Stream]]:
    """What is sent into the one end is read at the other."""
    far, near = socket.socketpair()
    with far, near:
        yield far, Stream(near)


def read(pair: tuple[socket.socket, Stream], sent: bytes) -> Head | None:
    pair[0].sendall(sent)
    pair[0].shutdown(socket.SHUT_WR)
    return pair[1].head()


def test_a_request_is_understood(pair: tuple[socket.socket, Stream]) -> None:
    head = read(pair, peerprotocol.request(DIGEST))
    assert head is not None
    assert peerprotocol.asked(head) == Asked(DIGEST, body=True)
    assert head.keeps
    assert pair[1].head() is None


def test_requests_that_were_sent_ahead_are_told_apart(pair: tuple[socket.socket, Stream]) -> None:
    digests = [sha256(bytes([number])) for number in range(20)]
    pair[0].sendall(b"".join(peerprotocol.request(digest) for digest in digests))
    heads = [pair[1].head() for _ in digests]
    assert [peerprotocol.asked(head).digest for head in heads if head is not None] == digests


@pytest.mark.parametrize(
    "line",
    [
        *(f"{method} {PATH} HTTP/1.1" for method in ("POST", "PUT", "DELETE", "OPTIONS", "get")),
        f"GET {PATH} HTTP/1.0",
        f"GET {PATH}/ HTTP/1.1",
        f"GET {PATH}?x HTTP/1.1",
        f"GET {PATH.upper()} HTTP/1.1",
        f"GET {PATH[:-1]} HTTP/1.1",
        f"GET {PATH}0 HTTP/1.1",
        f"GET http://node{PATH} HTTP/1.1",
        "GET /puzzlefs/v1/chunks/ HTTP/1.1",
        "GET /puzzlefs/v1/chunks/../../../etc/passwd HTTP/1.1",
        "GET / HTTP/1.1",
        "",
    ],
)
def test_whatever_is_no_digest_is_refused(line: str) -> None:
    with pytest.raises(InvalidError, match="no request for a chunk"):
        peerprotocol.asked(Head(line.encode(), {}))


@pytest.mark.parametrize("header", [{b"content-length": b"5"}, {b"transfer-encoding": b"chunked"}])
def test_a_request_has_no_body(header: dict[bytes, bytes]) -> None:
    with pytest.raises(InvalidError):
        peerprotocol.asked(Head(f"GET {PATH} HTTP/1.1".encode(), header))


@pytest.mark.parametrize(
    "sent",
    [
        b"G" * (LINE_MAX + 2),
        b"GET / HTTP/1.1\r\n" + b"".join(b"h%d: x\r\n" % number for number in range(HEADERS_MAX + 1)),
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\n folded: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nlength : 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n",
    ],
)
def test_heads_have_bounds_and_a_form(pair: tuple[socket.socket, Stream], sent: bytes) -> None:
    with pytest.raises(InvalidError):
        read(pair, sent)


@pytest.mark.parametrize("sent", [b"GET", b"GET / HTTP/1.1\r\nHost: a\r\n"])
def test_a_head_that_ends_early_is_a_broken_connection(pair: tuple[socket.socket, Stream], sent: bytes) -> None:
    with pytest.raises(ConnectionError):
        read(pair, sent)


def test_what_does_not_come_in_time_is_given_up(pair: tuple[socket.socket, Stream]) -> None:
    pair[0].sendall(b"GET ")
    pair[1].until = time.monotonic() + 0.01
    with pytest.raises(TimeoutError):
        pair[1].head()


def test_a_body_that_ends_early_is_a_broken_connection(pair: tuple[socket.socket, Stream]) -> None:
    pair[0].sendall(b"1234")
    pair[0].shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionError, match="2 bytes before the end"):
        pair[1].exactly(6)


def test_answers_are_understood(pair: tuple[socket.socket, Stream]) -> None:
    pair[0].sendall(peerprotocol.answer(200, 3) + b"abc" + peerprotocol.answer(503, 0) + peerprotocol.answer(404, 0, last=True))
    found = pair[1].head()
    assert found is not None
    assert found.keeps
    assert peerprotocol.answered(found, 3) == 3
    assert pair[1].exactly(3) == b"abc"
    declined = pair[1].head()
    assert declined is not None
    assert declined.keeps
    assert peerprotocol.answered(declined, 3) is None
    lacking = pair[1].head()
    assert lacking is not None
    assert not lacking.keeps
    assert peerprotocol.answered(lacking, 3) is None


@pytest.mark.parametrize(
    ("line", "headers"),
    [
        (b"HTTP/1.1 200 OK", {}),
        (b"HTTP/1.1 200 OK", {b"content-length": b"4"}),
        (b"HTTP/1.1 200 OK", {b"content-length": b"0"}),
        (b"HTTP/1.1 200 OK", {b"content-length": b"-1"}),
        (b"HTTP/1.1 200 OK", {b"content-length": b"3", b"transfer-encoding": b"chunked"}),
        (b"HTTP/1.1 404 Not Found", {b"content-length": b"3"}),
        (b"HTTP/1.1 302 Found", {b"content-length": b"0", b"location": b"http://elsewhere/"}),
        (b"HTTP/1.1 500 x", {b"content-length": b"3"}),
        (b"SSH-2.0-OpenSSH", {b"content-length": b"3"}),
    ],
)
def test_other_answers_are_none(line: bytes, headers: dict[bytes, bytes]) -> None:
    with pytest.raises(InvalidError):
        peerprotocol.answered(Head(line, headers), 3)
