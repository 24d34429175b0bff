"""Other nodes' caches as a source: what they have is taken, verified, and nothing they do costs a read much."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from snapshotter.chunkstore import peers as peers_module
from snapshotter.chunkstore.peerchoice import Choice
from snapshotter.chunkstore.peers import BATCH, LACKING_SECONDS, REFRESH, SOURCE, Peers, is_this_machine
from snapshotter.chunkstore.stats import Count, Stats
from snapshotter.format.digest import Digest, sha256
from snapshotter.registry.peerclient import Address
from tests.support.chunks import some_chunks
from tests.support.nodes import saying, serving, silent, speaking

CHUNKS = some_chunks(40)
DIGESTS = [sha256(raw) for raw in CHUNKS]
PACK = sha256(b"pack")
PATIENCE = 10
"""Seconds that this machine, however busy, may take for anything."""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextlib.contextmanager
def asking(*places: Address, **more: Any) -> Iterator[Peers]:
    made = Peers(places, stats=more.pop("stats", Stats()), patience=more.pop("patience", PATIENCE), **more)
    try:
        yield made
    finally:
        made.close()


def found(peers: Peers, digests: list[Digest] = DIGESTS) -> dict[Digest, bytes]:
    return dict(peers.find(PACK, digests))


def test_what_a_node_has_is_found_and_the_rest_is_not() -> None:
    stats = Stats()
    with serving(*CHUNKS[:5], *CHUNKS[30:]) as (address, _), asking(address, stats=stats) as peers:
        assert found(peers) == {sha256(raw): raw for raw in (*CHUNKS[:5], *CHUNKS[30:])}
    assert stats.snapshot()[Count.BYTES] == {SOURCE: sum(map(len, (*CHUNKS[:5], *CHUNKS[30:])))}
    assert stats.snapshot()[Count.REQUESTS] == {SOURCE: -(-len(CHUNKS) // BATCH)}


def test_what_one_node_lacks_another_may_have() -> None:
    with serving(*CHUNKS[:9]) as (one, _), serving(*CHUNKS[9:12]) as (two, _), asking(one, two) as peers:
        assert found(peers, DIGESTS[:12]) == {sha256(raw): raw for raw in CHUNKS[:12]}


def test_what_nobody_has_is_not_asked_for_again_for_a_while() -> None:
    clock = Clock()
    with serving(*CHUNKS[:1]) as (address, served), asking(address, clock=clock) as peers:
        assert found(peers, DIGESTS[:3]) == {DIGESTS[0]: CHUNKS[0]}
        assert found(peers, DIGESTS[:3]) == {DIGESTS[0]: CHUNKS[0]}
        assert served.asked == [*DIGESTS[:3], DIGESTS[0]]
        clock.now += LACKING_SECONDS
        served.chunks[DIGESTS[1]] = CHUNKS[1]
        assert found(peers, DIGESTS[1:2]) == {DIGESTS[1]: CHUNKS[1]}


def test_a_node_that_lies_gives_nothing_is_counted_and_asked_no_more() -> None:
    stats = Stats()
    with serving(*CHUNKS[:4]) as (address, served), asking(address, stats=stats) as peers:
        served.chunks[DIGESTS[1]] = CHUNKS[2]
        assert found(peers, DIGESTS[:4]) == {DIGESTS[0]: CHUNKS[0]}
        assert stats.snapshot()[Count.CORRUPT] == {SOURCE: 1}
        served.asked.clear()
        assert found(peers, DIGESTS[2:4]) == {}
        assert served.asked == []


@pytest.mark.parametrize("talk", [silent, saying(b"\x00" * 100), saying(b"HTTP/1.1 500 x\r\nContent-Length: 0\r\n\r\n")])
def test_a_node_that_fails_is_left_alone_and_another_one_asked(talk: Callable[[socket.socket], None]) -> None:
    choice = Choice(shuffle=lambda order: None)
    with (
        speaking(talk) as (broken, taken),
        serving(*CHUNKS) as (well, _),
        asking(broken, well, choice=choice, clock=Clock(), patience=2) as peers,
    ):
        found(peers, DIGESTS[:1])
        assert found(peers, DIGESTS[1:]) == {sha256(raw): raw for raw in CHUNKS[1:]}
        assert len(taken) == 1


def test_a_node_that_sends_long_chunks_has_the_time_that_their_bytes_take() -> None:
    patience, pause = 1.0, 0.4
    long = [bytes([number]) * (1 << 20) for number in range(5)]
    with serving(*long) as (address, served), asking(address, patience=patience) as peers:
        served.before = lambda digest: time.sleep(pause)
        assert len(found(peers, [sha256(raw) for raw in long])) == len(long), (
            f"{len(long)} chunks of 1 MiB that take {pause} s each did not all come, with {patience} s of patience for 1 MiB"
        )


def test_a_node_that_is_gone_is_nothing_to_a_read() -> None:
    with serving(*CHUNKS) as (address, _):
        peers = Peers([address], stats=Stats(), patience=PATIENCE)
        assert found(peers, DIGESTS[:1]) == {DIGESTS[0]: CHUNKS[0]}
    assert found(peers) == {}
    peers.close()


def test_after_it_was_closed_nobody_is_asked() -> None:
    with serving(*CHUNKS) as (address, served), asking(address) as peers:
        peers.close()
        assert found(peers) == {}
        assert served.asked == []


class Names:
    """Answers what a name resolves to; `asked` is set when somebody does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses: list[str] = []
        self.fails = False
        self.asked = threading.Event()
        self._real = socket.getaddrinfo
        monkeypatch.setattr(peers_module.socket, "getaddrinfo", self)

    def __call__(self, host: str, port: int, *more: Any, **options: Any) -> Any:
        if host != "nodes.example":
            return self._real(host, port, *more, **options)
        self.asked.set()
        if self.fails:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self.addresses]


def settled() -> None:
    """What was being resolved is."""
    for thread in threading.enumerate():
        if thread.name == "peer-names":
            thread.join(PATIENCE)


def test_every_address_of_a_name_is_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)
    monkeypatch.setattr(peers_module, "check_peer", lambda address, loopback: None)
    clock = Clock()
    with serving(*CHUNKS) as (address, _):
        names.addresses = [address.host]
        with asking(Address("nodes.example", address.port), clock=clock) as peers:
            settled()
            assert found(peers, DIGESTS[:1])
            names.fails = True
            clock.now += REFRESH
            assert found(peers, DIGESTS[1:2]), "nothing waits for names"
            settled()
            assert found(peers, DIGESTS[2:3]), "and whoever was known is asked further on"
            names.fails, names.addresses = False, []
            clock.now += REFRESH
            found(peers, DIGESTS[3:4])
            settled()
            assert not found(peers, DIGESTS[4:5])


def test_a_name_leads_neither_to_this_machine_nor_to_a_metadata_service(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)
    with serving(*CHUNKS) as (address, served):
        names.addresses = ["127.0.0.1", "169.254.169.254", "100.100.100.200"]
        with asking(Address("nodes.example", address.port)) as peers:
            settled()
            assert names.asked.is_set()
            assert found(peers) == {}
        assert served.asked == []


def test_this_node_does_not_ask_itself() -> None:
    with serving(*CHUNKS) as (address, served), asking(address, own=address.port) as peers:
        assert found(peers) == {}
        assert served.asked == []
    assert is_this_machine("127.0.0.1")
    assert not is_this_machine("203.0.113.7")
