"""What other nodes get of this one's cache: chunks whose digest they know, and nothing else."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.chunkstore.cache import ChunkCache
from snapshotter.chunkstore.stats import Count, Stats
from snapshotter.daemon import peerserver
from snapshotter.daemon.allowance import Allowance
from snapshotter.daemon.peering import PeersConfig, contexts
from snapshotter.daemon.peerserver import PeerServer
from snapshotter.errors import FailedPreconditionError
from snapshotter.format.digest import Digest, sha256
from snapshotter.registry import peerprotocol
from snapshotter.registry.failures import RegistryUnavailableError
from snapshotter.registry.peerclient import Address, Budget, PeerClient
from tests.support.chunks import some_chunks
from tests.support.nodes import LOOPBACK, Authority

CHUNKS = some_chunks(4, size=300_000)
DIGESTS = [sha256(raw) for raw in CHUNKS]
ABSENT = sha256(b"nobody has this")
PATIENCE = 20


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ChunkCache]:
    made = ChunkCache(tmp_path, stats=Stats())
    for digest, raw in zip(DIGESTS, CHUNKS, strict=True):
        made.put(digest, raw)
    made.flush()
    yield made
    made.close()


@pytest.fixture
def server(cache: ChunkCache) -> Iterator[PeerServer]:
    made = PeerServer(LOOPBACK, cache.opened, stats=cache.stats)
    yield made
    made.close()


def ask(server: PeerServer, *digests: Digest, tls: PeersConfig | None = None) -> list[bytes | None]:
    client = PeerClient(server.address, None if tls is None else contexts(tls, server=False))
    try:
        return list(client.ask(digests, Budget(PATIENCE)))
    finally:
        client.close()


def say(server: PeerServer, text: bytes) -> bytes:
    """What is answered to `text` until the connection ends."""
    with socket.create_connection(server.address, PATIENCE) as sock:
        sock.sendall(text)
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
        return answer


def test_chunks_of_the_cache_are_served_and_counted(server: PeerServer, cache: ChunkCache) -> None:
    assert ask(server, *DIGESTS, ABSENT) == [*CHUNKS, None]
    counted = cache.stats.snapshot()
    assert (counted[Count.SERVED], counted[Count.SERVED_BYTES]) == ({"": 4}, {"": sum(map(len, CHUNKS))})


def test_head_tells_whether_it_is_there_and_how_long_it_is(server: PeerServer) -> None:
    for digest, expected in ((DIGESTS[0], b"200"), (ABSENT, b"404")):
        answer = say(server, f"HEAD {peerprotocol.PATH}{digest.hex()} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 " + expected)
        assert body == b""
        assert b"Content-Length: " + str(len(CHUNKS[0]) if expected == b"200" else 0).encode() in head


@pytest.mark.parametrize(
    "text",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /puzzlefs/v1/chunks/ HTTP/1.1\r\n\r\n",
        b"GET /puzzlefs/v1/chunks/../../metadata.db HTTP/1.1\r\n\r\n",
        b"GET /puzzlefs/v1/chunks/%2e%2e%2fmetadata.db HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n\r\n",
        b"PUT " + peerprotocol.PATH.encode() + DIGESTS[0].hex().encode() + b" HTTP/1.1\r\nContent-Length: 1\r\n\r\nx",
        b"DELETE " + peerprotocol.PATH.encode() + DIGESTS[0].hex().encode() + b" HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01 this is TLS" + b"\r\n\r\n",
        b"A" * 3000,
        b"GET " + peerprotocol.PATH.encode() + DIGESTS[0].hex().encode() + b" HTTP/1.1\r\n" + b"X: y\r\n" * 2 + b"\r\n",
    ],
)
def test_nothing_but_chunks_is_served(server: PeerServer, text: bytes) -> None:
    """Every other request gets the same short answer, and the connection ends."""
    assert say(server, text) == peerprotocol.answer(400, 0, last=True)


def test_beyond_the_allowance_chunks_are_declined_and_nobody_waits(cache: ChunkCache) -> None:
    """For who asks it is as if they were not there, and with time there is more to give."""
    now = [0.0]
    allowance = Allowance(len(CHUNKS[0]), clock=lambda: now[0])
    with contextlib.closing(PeerServer(LOOPBACK, cache.opened, stats=cache.stats, allowance=allowance)) as server:
        assert ask(server, *DIGESTS) == [CHUNKS[0], None, None, None]
        answer = say(server, peerprotocol.request(DIGESTS[1])[:-2] + b"Connection: close\r\n\r\n")
        assert answer == peerprotocol.answer(503, 0, last=True)
        assert ask(server, ABSENT) == [None]
        now[0] = 1.0
        assert ask(server, DIGESTS[1]) == [CHUNKS[1]]
    assert (cache.stats.total(Count.SERVED), cache.stats.total(Count.DECLINED)) == (2, 4)


def test_a_file_that_was_damaged_is_not_served_but_dropped(server: PeerServer, cache: ChunkCache) -> None:
    path = Path(cache.directory.file(DIGESTS[1]))
    path.write_bytes(CHUNKS[1][:-1] + b"!")
    assert ask(server, *DIGESTS[:3]) == [CHUNKS[0], None, CHUNKS[2]]
    assert not path.exists()
    assert cache.stats.total(Count.CACHE_CORRUPT) == 1


def test_what_another_node_reads_is_no_read_of_a_container(server: PeerServer, cache: ChunkCache) -> None:
    """Eviction goes by those: nobody elsewhere keeps chunks in this cache, or puts them out of it."""
    path = cache.directory.file(DIGESTS[0])
    os.utime(path, (1000, 1000))
    assert ask(server, DIGESTS[0]) == [CHUNKS[0]]
    assert os.stat(path).st_mtime == 1000


def test_a_link_in_the_place_of_a_chunk_is_not_followed(server: PeerServer, cache: ChunkCache, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    path = Path(cache.directory.file(sha256(b"secret")))
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(secret)
    assert ask(server, sha256(b"secret")) == [None]


def test_connections_have_a_number(server: PeerServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One beyond is closed at once; when others go, there is room again."""
    monkeypatch.setattr(peerserver, "CONNECTIONS_MAX", 2)
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection(server.address, PATIENCE)) for _ in range(2)]
        for sock in held:
            sock.sendall(peerprotocol.request(ABSENT))
            assert sock.recv(65536)
        with socket.create_connection(server.address, PATIENCE) as further:
            assert further.recv(1) == b""
    while [thread for thread in threading.enumerate() if thread.name == "peer"]:
        time.sleep(0.01)
    assert ask(server, DIGESTS[0]) == [CHUNKS[0]]


def test_a_silent_connection_ends(cache: ChunkCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peerserver, "IDLE", 0.05)
    with contextlib.closing(PeerServer(LOOPBACK, cache.opened, stats=cache.stats)) as server:
        assert say(server, b"") == b""
        assert say(server, b"GET /puzzlefs") == b""


def test_a_connection_does_not_live_for_ever(cache: ChunkCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with an answer; one whose other side does not take its answer is cut."""
    monkeypatch.setattr(peerserver, "LIFETIME", 0.1)
    with contextlib.closing(PeerServer(LOOPBACK, cache.opened, stats=cache.stats)) as server:
        with socket.create_connection(server.address, PATIENCE) as sock:
            answers = 0
            while True:
                sock.sendall(peerprotocol.request(ABSENT))
                answer = sock.recv(65536)
                answers += 1
                if b"Connection: close" in answer:
                    break
            assert sock.recv(1) == b""
            assert answers > 1
        with socket.create_connection(server.address, PATIENCE) as sock:
            sock.sendall(peerprotocol.request(DIGESTS[0]) * 1000)
            while [thread for thread in threading.enumerate() if thread.name == "peer"]:
                time.sleep(0.01)


def test_closing_ends_connections_and_may_be_repeated(server: PeerServer) -> None:
    with socket.create_connection(server.address, PATIENCE) as sock:
        sock.sendall(peerprotocol.request(ABSENT))
        assert sock.recv(65536)
        server.close()
        assert sock.recv(1) == b""
    server.close()


def test_an_address_that_is_taken_is_said(server: PeerServer, cache: ChunkCache) -> None:
    with pytest.raises(FailedPreconditionError, match=rf"cannot serve other nodes at {server.address}: Address already in use"):
        PeerServer(server.address, cache.opened, stats=cache.stats)


class TestMutualTls:
    @pytest.fixture
    def cluster(self, tmp_path: Path) -> Authority:
        return Authority(tmp_path, "cluster")

    @pytest.fixture
    def server(self, cache: ChunkCache, cluster: Authority) -> Iterator[PeerServer]:
        tls = contexts(cluster.node("a"), server=True)
        made = PeerServer(LOOPBACK, cache.opened, stats=cache.stats, tls=tls)
        yield made
        made.close()

    def test_nodes_of_the_cluster_are_served(self, server: PeerServer, cluster: Authority) -> None:
        assert ask(server, *DIGESTS, ABSENT, tls=cluster.node("b")) == [*CHUNKS, None]

    def test_nobody_else_is(self, server: PeerServer, cluster: Authority, tmp_path: Path) -> None:
        stranger = Authority(tmp_path, "stranger").node("x", trusting=cluster)
        with pytest.raises(RegistryUnavailableError):
            ask(server, DIGESTS[0], tls=stranger)
        with pytest.raises(RegistryUnavailableError):
            ask(server, DIGESTS[0])  # without TLS
        anonymous = ssl.create_default_context(cafile=cluster.path)
        anonymous.check_hostname = False
        with (
            socket.create_connection(server.address, PATIENCE) as sock,
            anonymous.wrap_socket(sock) as secure,
            pytest.raises(OSError, match="certificate required"),
        ):
            secure.recv(1)

    def test_who_is_asked_must_be_of_the_cluster_too(self, cache: ChunkCache, cluster: Authority, tmp_path: Path) -> None:
        tls = contexts(Authority(tmp_path, "stranger").node("x", trusting=cluster), server=True)
        with (
            contextlib.closing(PeerServer(LOOPBACK, cache.opened, stats=cache.stats, tls=tls)) as server,
            pytest.raises(RegistryUnavailableError, match=r"node 127\.0\.0\.1"),
        ):
            ask(server, DIGESTS[0], tls=cluster.node("b"))

    def test_a_renewed_certificate_is_taken_without_a_restart(
        self, cache: ChunkCache, cluster: Authority, tmp_path: Path
    ) -> None:
        old = Authority(tmp_path, "old").node("a")
        assert old.credential is not None
        tls = contexts(old, server=True)
        with contextlib.closing(PeerServer(LOOPBACK, cache.opened, stats=cache.stats, tls=tls)) as server:
            new = cluster.node("a").credential
            assert new is not None
            for one, other in zip(
                (old.credential.certificate, old.credential.key, old.credential.ca),
                (new.certificate, new.key, new.ca),
                strict=True,
            ):
                one.write_bytes(other.read_bytes())
            assert ask(server, DIGESTS[0], tls=cluster.node("b")) == [CHUNKS[0]]


def test_ipv6(cache: ChunkCache) -> None:
    with contextlib.closing(PeerServer(Address("::1", 0), cache.opened, stats=cache.stats)) as server:
        assert ask(server, DIGESTS[0]) == [CHUNKS[0]]
        assert str(server.address).startswith("[::1]:")
