"""Asking another node: many chunks in one go, over kept connections, for a bounded time."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest

from snapshotter.format.digest import sha256
from snapshotter.registry import peerprotocol
from snapshotter.registry.failures import RegistryUnavailableError
from snapshotter.registry.peerclient import Budget, PeerClient
from tests.support.chunks import at_once, some_chunks
from tests.support.nodes import saying, serving, silent, speaking

CHUNKS = some_chunks(20, size=70_000)
DIGESTS = [sha256(raw) for raw in CHUNKS]
LONG = 20.0


def soon() -> Budget:
    return Budget(LONG)


def test_answers_come_in_the_order_of_the_questions() -> None:
    with serving(*CHUNKS[:3], *CHUNKS[5:]) as (address, _):
        client = PeerClient(address)
        assert list(client.ask(DIGESTS, soon())) == [*CHUNKS[:3], None, None, *CHUNKS[5:]]
        client.close()


def test_a_connection_is_kept() -> None:
    """Also over chunks that are not there."""
    answers = peerprotocol.answer(404, 0) + peerprotocol.answer(200, 1) + b"x"

    def talk(sock: socket.socket) -> None:
        while sock.recv(65536):
            sock.sendall(answers)

    with speaking(talk) as (address, taken):
        client = PeerClient(address)
        for _ in range(3):
            assert list(client.ask(DIGESTS[:2], soon())) == [None, b"x"]
        client.close()
        assert len(taken) == 1


def test_a_kept_connection_that_was_closed_meanwhile_is_replaced() -> None:
    with speaking(saying(peerprotocol.answer(200, 1) + b"x")) as (address, taken):
        client = PeerClient(address)
        for _ in range(3):
            assert list(client.ask(DIGESTS[:1], soon())) == [b"x"]
        client.close()
        assert len(taken) == 3


def test_a_connection_that_the_node_ends_is_not_kept() -> None:
    with speaking(saying(peerprotocol.answer(404, 0, last=True))) as (address, taken):
        client = PeerClient(address)
        assert list(client.ask(DIGESTS[:1], soon())) == [None]
        assert list(client.ask(DIGESTS[:1], soon())) == [None]
        client.close()
        assert len(taken) == 2


def test_what_came_before_a_failure_is_given() -> None:
    with speaking(saying(peerprotocol.answer(200, 3) + b"abc" + peerprotocol.answer(200, 3) + b"a")) as (address, _):
        client = PeerClient(address)
        answers = client.ask(DIGESTS[:2], soon())
        assert next(answers) == b"abc"
        with pytest.raises(RegistryUnavailableError, match="ended 2 bytes before the end"):
            next(answers)
        client.close()


@pytest.mark.parametrize(
    ("talk", "said"),
    [
        (silent, "no complete answer in time"),
        (saying(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"), "ended 5 bytes before the end"),
        (saying(b"220 mail.example ESMTP\r\n\r\n"), "answers as no node's cache does"),
        (saying(peerprotocol.answer(200, 17 << 20)), "answers 200 with"),
        (saying(b"x" * 5000), "a line of more than"),
        (lambda sock: None, "node 127.0.0.1"),
    ],
)
def test_every_failure_names_the_node(talk: Callable[[socket.socket], None], said: str) -> None:
    with speaking(talk) as (address, _):
        client = PeerClient(address)
        budget = Budget(0.05 if talk is silent else LONG)
        with pytest.raises(RegistryUnavailableError, match=said) as caught:
            list(client.ask(DIGESTS[:1], budget))
        assert str(address) in str(caught.value)
        client.close()


def test_a_node_that_drips_is_given_up() -> None:
    """Each byte comes in time, the whole does not: silence alone is no bound."""

    def drip(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(peerprotocol.answer(200, 1 << 20))
        while True:
            sock.sendall(b"x")
            time.sleep(0.005)

    with speaking(drip) as (address, _):
        client = PeerClient(address)
        with pytest.raises(RegistryUnavailableError, match="no complete answer in time"):
            list(client.ask(DIGESTS[:1], Budget(0.1)))
        client.close()


def test_the_time_that_the_asker_takes_does_not_count() -> None:
    """It may have a slow disk; the node that waits for it is not to blame."""
    with serving(*CHUNKS) as (address, _):
        client, budget = PeerClient(address), Budget(LONG)
        until = budget.until
        answers = client.ask(DIGESTS, budget)
        assert next(answers) == CHUNKS[0]
        time.sleep(0.05)
        assert list(answers) == CHUNKS[1:]
        assert budget.until >= until + 0.05
        client.close()


def test_nobody_there() -> None:
    with speaking(silent) as (address, _):
        pass
    with pytest.raises(RegistryUnavailableError, match="refused"):
        list(PeerClient(address).ask(DIGESTS[:1], soon()))


def test_many_threads_each_get_what_they_asked_for() -> None:
    with serving(*CHUNKS) as (address, _):
        client = PeerClient(address)
        tasks = [lambda some=DIGESTS[n::4]: list(client.ask(some, soon())) for n in range(4)]  # type: ignore[misc]
        assert at_once(tasks * 3) == [CHUNKS[n::4] for n in range(4)] * 3
        client.close()
