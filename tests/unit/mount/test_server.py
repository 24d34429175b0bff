"""The event loop, with a socket where it has /dev/fuse: one packet is one request, as one read(2) of the device is."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from queue import Queue

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapshotter.format.digest import sha256
from snapshotter.format.model import DirEntry, FileChunk, Inode, Kind, RootfsContent
from snapshotter.format.rootfs import Rootfs
from snapshotter.format.writer import encode
from snapshotter.mount import journal, wire
from snapshotter.mount import server as server_module
from snapshotter.mount.journal import Journal
from snapshotter.mount.server import Server
from snapshotter.mount.session import Failure, Session
from snapshotter.mount.tree import Tree
from snapshotter.mount.wire import Negotiated, Opcode
from tests.support.chunks import StubStore

RAW = b"content of the file"
PATIENCE = 20


class Kernel:
    """The other end of the device."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._uniques = iter(range(1 << 50, 1 << 60, 2))

    def send(self, data: bytes) -> None:
        self._sock.send(data)

    def answer(self) -> tuple[int, int, bytes]:
        """The next reply: unique, errno (positive), payload. Its length must be right."""
        data = self._sock.recv(2 << 20)
        length, error, unique = wire.OUT_HEADER.unpack_from(data)
        assert length == len(data)
        return unique, -error, data[16:]

    def ask(self, opcode: int, nodeid: int, body: bytes = b"", unique: int | None = None) -> tuple[int, bytes]:
        """Errno and payload of the answer to a request; other answers that come are passed over."""
        unique = unique or next(self._uniques)
        self.send(request(opcode, nodeid, body, unique))
        while (answer := self.answer())[0] != unique:
            pass
        return answer[1:]

    def lives(self) -> bool:
        """Whether a read of the file is answered right."""
        return self.ask(Opcode.READ, 2, READ.pack(0, 0, 4096, 0, 0, 0, 0)) == (0, RAW)


READ = struct.Struct("<QQIIQII")


def request(opcode: int, nodeid: int, body: bytes, unique: int, *, length: int | None = None, extensions: int = 0) -> bytes:
    length = 40 + len(body) if length is None else length
    return wire.IN_HEADER.pack(length & 0xFFFFFFFF, opcode, unique, nodeid, 0, 0, 0, extensions, 0) + body


@contextlib.contextmanager
def served(
    memory: Journal | None = None, keep_awake: Callable[[bool], None] | None = None
) -> Iterator[tuple[Kernel, list[Failure], list[str]]]:
    """A server with one mount; its failures, and the mounts that it gave up."""
    inodes = [
        Inode(1, Kind.DIR, entries=[DirEntry(2, b"file"), DirEntry(3, b"link")]),
        Inode(2, Kind.FILE, 0o644, chunks=[FileChunk(sha256(RAW), 0, len(RAW))]),
        Inode(3, Kind.LNK, 0o777, target=b"file"),
    ]
    failures: list[Failure] = []
    gone: list[str] = []
    tree = Tree(Rootfs.open(encode(RootfsContent([inodes]))))
    session = Session(tree, StubStore([RAW]), failures.append, Negotiated(41, 0, 0))
    server = Server(lambda name, session: None, gone.append, keep_awake)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(PATIENCE)
    loop = threading.Thread(target=server.run)
    loop.start()
    try:
        server.add("m", theirs.detach(), session, memory or Journal(journal.create({})))
        yield Kernel(ours), failures, gone
    finally:
        server.stop()
        loop.join()
        ours.close()


OPCODES = st.one_of(st.sampled_from(sorted(Opcode)), st.integers(0, 2**32 - 1))
NODES = st.one_of(st.integers(0, 5), st.integers(0, 2**64 - 1))
NUMBERS = st.one_of(st.integers(0, 64), st.integers(0, 2**64 - 1))
READS = st.builds(lambda fh, offset, size: READ.pack(fh, offset, size % 2**32, 0, 0, 0, 0), NUMBERS, NUMBERS, NUMBERS)
BODIES = st.one_of(st.binary(max_size=200), READS, st.binary(max_size=300).map(lambda name: name + b"\0"))
REQUESTS = st.builds(
    request,
    OPCODES.filter(lambda opcode: opcode != Opcode.INIT),
    NODES,
    BODIES,
    st.integers(1, 2**48),
    length=st.one_of(st.none(), st.integers(0, 2**32 - 1)),
    extensions=st.one_of(st.just(0), st.integers(0, 2**16 - 1)),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(REQUESTS, st.binary(min_size=1, max_size=100)), max_size=12))
def test_no_request_kills_the_server(requests: Sequence[bytes]) -> None:
    with served() as (kernel, _, gone):
        for data in requests:
            kernel.send(data)
        assert kernel.lives()
        assert gone == []


def test_ten_thousand_malformed_requests() -> None:
    chance = random.Random(4)
    with served() as (kernel, _, gone):
        for number in range(10_000):
            body = chance.randbytes(chance.choice((0, 1, 7, 8, 16, 40, 120)))
            opcode = chance.choice((*Opcode, 0, 53, 4096, 2**32 - 1))
            node = chance.choice((0, 1, 2, 3, 4, 2**64 - 1))
            length = chance.choice((None, None, 0, 39, 40, 41, 2**32 - 1))
            if opcode != Opcode.INIT:
                extensions = chance.choice((0, 0, 0, 1, 9))
                kernel.send(request(opcode, node, body, number * 2 + 2, length=length, extensions=extensions))
            if number % 50 == 0:
                assert kernel.lives(), number
        assert gone == []


@pytest.mark.parametrize("size", [1, 8, 15, 16, 39])
def test_a_request_that_is_shorter_than_its_header(size: int) -> None:
    with served() as (kernel, failures, gone):
        kernel.send(request(Opcode.GETATTR, 1, b"", 78)[:size])
        if size >= 16:
            assert kernel.answer()[:2] == (78, 22)
        assert kernel.lives()
        assert (failures, gone) == ([], [])


def test_a_request_with_which_every_server_crashed_is_refused() -> None:
    """It is answered with an error that says so; INIT and everything else go on."""
    memory = journal.create({})
    for _ in range(journal.CRASHES_MAX):
        with contextlib.closing(Journal(os.dup(memory))) as crashed:
            crashed.forget()
            data = request(Opcode.READ, 2, READ.pack(0, 0, 4096, 0, 0, 0, 0), 7)
            crashed.landing[: len(data)] = data
        journal.blame(memory)
    with served(Journal(memory)) as (kernel, failures, _):
        assert kernel.ask(Opcode.READ, 2, READ.pack(0, 0, 4096, 0, 0, 0, 0), wire.UNIQUE_RESEND | 7) == (errno.EIO, b"")
        assert {(failure.ino, failure.offset, failure.length) for failure in failures} == {(2, 0, 4096)}
        assert "crashed while they had this request" in str(failures[0].error)
        assert kernel.lives()


def test_sleep_is_kept_off_during_a_burst_and_not_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slowly the machine runs this: any requests are taken for lively ones."""
    monkeypatch.setattr(server_module, "LIVELY_NS", 10**12)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    said: Queue[bool] = Queue()
    with served(keep_awake=said.put) as (kernel, _, _):
        deadline = time.monotonic() + PATIENCE
        while said.empty() and time.monotonic() < deadline:
            kernel.ask(Opcode.GETATTR, 2, bytes(16))
        assert said.get(timeout=PATIENCE) is True
        assert said.get(timeout=PATIENCE) is False
        assert kernel.lives()
