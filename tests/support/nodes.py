"""Other nodes: caches that are served as a daemon serves its own, and ones that misbehave."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import trustme

from snapshotter.chunkstore.stats import Stats
from snapshotter.daemon.peering import Credential, PeersConfig
from snapshotter.daemon.peerserver import PeerServer
from snapshotter.format.digest import Digest, sha256
from snapshotter.registry.peerclient import Address

LOOPBACK = Address("127.0.0.1", 0)


class Authority:
    """An authority that makes nodes' certificates."""

    def __init__(self, directory: Path, name: str) -> None:
        self._authority = trustme.CA()
        self._directory = directory / name
        self._directory.mkdir()
        self.path = self._directory / "ca.pem"
        self._authority.cert_pem.write_to_path(self.path)

    def node(self, name: str, trusting: Authority | None = None, ends: datetime.datetime | None = None) -> PeersConfig:
        """What a node with a certificate of this authority is configured with."""
        made = self._authority.issue_cert(f"{name}.example", not_after=ends)
        certificate, key = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        made.cert_chain_pems[0].write_to_path(certificate)
        made.private_key_pem.write_to_path(key)
        return PeersConfig(credential=Credential(certificate, key, (trusting or self).path))


class ServedChunks:
    """A dictionary of chunks as `PeerServer` opens a cache's; `asked` is what for. What `before` raises ends a connection."""

    def __init__(self, chunks: Mapping[Digest, bytes]) -> None:
        self.chunks = dict(chunks)
        self.asked: list[Digest] = []
        self.before: Callable[[Digest], None] = lambda digest: None

    @contextlib.contextmanager
    def __call__(self, digest: Digest) -> Iterator[tuple[int, int] | None]:
        self.asked.append(digest)
        self.before(digest)
        raw = self.chunks.get(digest)
        if raw is None:
            yield None
            return
        with tempfile.TemporaryFile() as file:
            file.write(raw)
            file.flush()
            os.lseek(file.fileno(), 0, os.SEEK_SET)
            yield file.fileno(), len(raw)


@contextlib.contextmanager
def serving(*chunks: bytes) -> Iterator[tuple[Address, ServedChunks]]:
    """A node with `chunks`: where it is, and what it has."""
    served = ServedChunks({sha256(raw): raw for raw in chunks})
    server = PeerServer(LOOPBACK, served, stats=Stats())
    try:
        yield server.address, served
    finally:
        server.close()


@contextlib.contextmanager
def speaking(talk: Callable[[socket.socket], None]) -> Iterator[tuple[Address, list[int]]]:
    """Something that takes connections and does to each what `talk` says, then closes it; and a number for each so far."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken: list[int] = []
        sockets: list[socket.socket] = []
        closing = threading.Event()

        def accept() -> None:
            while not closing.is_set():
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                taken.append(len(taken))
                sockets.append(sock)
                with sock, contextlib.suppress(OSError):
                    sock.settimeout(20)
                    talk(sock)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield Address(*listener.getsockname()), taken
        finally:
            closing.set()
            for each in (listener, *sockets):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            thread.join()


def silent(sock: socket.socket) -> None:
    """Takes everything and answers nothing, until the other side goes."""
    while sock.recv(65536):
        pass


def saying(answer: bytes) -> Callable[[socket.socket], None]:
    """Says `answer` to the first thing that comes, whatever it is."""

    def talk(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(answer)

    return talk
