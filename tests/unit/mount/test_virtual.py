"""The engine for trees whose names are made up as they are asked for: what the kernel is told, whatever it or the tree says."""

from __future__ import annotations

import errno
import stat
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import NotFoundError, UnavailableError
from snapshotter.mount import wire
from snapshotter.mount.virtual import Node, VirtualSession
from snapshotter.mount.wire import Opcode

FILE = Node(7, stat.S_IFREG | 0o444, 5)


class Tree:
    """One file, ``file``, in the root; a name that cannot be had, ``gone``."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, int, bytes]] = []

    def lookup(self, parent: int, name: bytes) -> Node | None:
        if name == b"gone":
            raise UnavailableError("registry.example does not answer")
        return FILE if name == b"file" else None

    def node(self, ino: int) -> Node:
        if ino == 1:
            return Node(1, stat.S_IFDIR | 0o555)
        if ino == FILE.ino:
            return FILE
        raise NotFoundError(f"inode {ino}")

    def names(self, ino: int) -> Sequence[tuple[bytes, Node]]:
        return [(b"file", FILE), (b"other", FILE)]

    def readlink(self, ino: int, caller: int) -> bytes:
        raise NotFoundError("no symlink")

    def read(self, ino: int, offset: int, size: int) -> bytes:
        return b"hello"[offset : offset + size]

    def create(self, parent: int, name: bytes) -> int:
        self.messages.append(("create", parent, name))
        return errno.ENOENT

    def rmdir(self, parent: int, name: bytes) -> int:
        self.messages.append(("rmdir", parent, name))
        return errno.ENOENT


def request(opcode: int, nodeid: int = 1, body: bytes = b"", unique: int = 9) -> memoryview:
    """A request as the kernel sends it."""
    return memoryview(wire.IN_HEADER.pack(wire.IN_HEADER.size + len(body), opcode, unique, nodeid, 0, 0, 0, 0, 0) + body)


class Asked:
    """A session without a kernel, and the last answer's parts."""

    def __init__(self) -> None:
        self.tree = Tree()
        self.failures: list[str] = []
        self.session = VirtualSession(self.tree, lambda what, error: self.failures.append(f"{what}: {error}"))

    def __call__(self, opcode: int, nodeid: int = 1, body: bytes = b"") -> tuple[int, bytes]:
        """(errno, payload) of the answer."""
        reply = self.session.handle(request(opcode, nodeid, body))
        assert reply is not None
        data = b"".join(reply)
        length, error, unique = wire.OUT_HEADER.unpack_from(data)
        assert (length, unique) == (len(data), 9)
        return -error, data[wire.OUT_HEADER.size :]


@pytest.fixture
def ask() -> Asked:
    return Asked()


def test_lookup_is_believed_for_a_moment_only(ask: Asked) -> None:
    """The name may mean something else later."""
    error, payload = ask(Opcode.LOOKUP, body=b"file\0")
    nodeid, _, entry_valid, attr_valid = struct.unpack_from("<QQQQ", payload)
    assert (error, nodeid) == (0, 7)
    assert 0 < entry_valid < 60
    assert 0 < attr_valid < 60


def test_a_name_that_does_not_exist_is_not_remembered(ask: Asked) -> None:
    """No negative entry: a million of them would be a million in the kernel's memory."""
    assert ask(Opcode.LOOKUP, body=b"x\0") == (errno.ENOENT, b"")


def test_what_cannot_be_had_is_eio_and_reported(ask: Asked) -> None:
    assert ask(Opcode.LOOKUP, body=b"gone\0") == (errno.EIO, b"")
    assert ask.failures == ["LOOKUP of inode 1: registry.example does not answer"]


def test_a_number_that_means_nothing_is_enoent(ask: Asked) -> None:
    assert ask(Opcode.GETATTR, nodeid=99) == (errno.ENOENT, b"")
    assert ask.failures == []


def test_read(ask: Asked) -> None:
    body = struct.pack("<QQIIQII", 0, 1, 3, 0, 0, 0, 0)
    assert ask(Opcode.READ, nodeid=7, body=body) == (0, b"ell")


def test_directories_are_opened_so_that_no_listing_is_kept(ask: Asked) -> None:
    """ENOSYS would be remembered with FOPEN_CACHE_DIR (fuse_dir_open)."""
    error, payload = ask(Opcode.OPENDIR)
    assert (error, struct.unpack("<QII", payload)) == (0, (0, 0, 0))
    assert ask(Opcode.OPEN, nodeid=7)[0] == errno.ENOSYS


def test_readdir_goes_on_after_its_cookie(ask: Asked) -> None:
    listed = []
    cookie = 0
    while True:
        error, payload = ask(Opcode.READDIR, body=struct.pack("<QQIIQII", 0, cookie, 64, 0, 0, 0, 0))
        assert error == 0
        if not payload:
            break
        while payload:
            _, cookie, length, _ = struct.unpack_from("<QQII", payload)
            listed.append(payload[24 : 24 + length])
            payload = payload[24 + length + -length % 8 :]
    assert listed == [b".", b"..", b"file", b"other"]


def test_create_and_rmdir_are_messages(ask: Asked) -> None:
    for opcode, head in ((Opcode.CREATE, bytes(16)), (Opcode.MKNOD, bytes(16)), (Opcode.RMDIR, b"")):
        assert ask(opcode, nodeid=7, body=head + b"use\0") == (errno.ENOENT, b"")
    assert ask.tree.messages == [("create", 7, b"use"), ("create", 7, b"use"), ("rmdir", 7, b"use")]


@pytest.mark.parametrize("opcode", sorted(wire.WRITING - {Opcode.CREATE, Opcode.MKNOD, Opcode.RMDIR}))
def test_everything_else_that_would_change_something_is_erofs(ask: Asked, opcode: int) -> None:
    assert ask(opcode, body=bytes(64)) == (errno.EROFS, b"")


def test_init(ask: Asked) -> None:
    """READDIRPLUS is declined: it would ask for every name's attributes, which may be a request to a registry each."""
    body = struct.pack("<IIII", 7, 41, 1 << 17, 0xFFFFFFFF & ~(1 << 30))
    error, payload = ask(Opcode.INIT, body=body)
    assert error == 0
    flags = struct.unpack_from("<IIII", payload)[3]
    assert not flags & wire.InitFlag.DO_READDIRPLUS
    assert ask.session.negotiated is not None


@given(st.binary(max_size=200))
def test_whatever_comes_gets_an_errno_or_nothing(data: bytes) -> None:
    """A malformed request must not end the server."""
    reply = Asked().session.handle(memoryview(data))
    assert reply is None or wire.OUT_HEADER.unpack_from(b"".join(reply))[1] <= 0


@given(st.integers(0, 60), st.binary(max_size=100), st.integers(0, 1 << 64 - 1))
def test_whatever_a_known_request_carries(opcode: int, body: bytes, nodeid: int) -> None:
    """Likewise with a header that is right."""
    reply = Asked().session.handle(request(opcode, nodeid & (1 << 64) - 1, body))
    assert reply is None or wire.OUT_HEADER.unpack_from(b"".join(reply))[1] <= 0
