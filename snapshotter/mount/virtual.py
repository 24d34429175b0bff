"""The native engine for a small tree of names that are made up as they are asked for, and whose answers may wait.

A layer's tree (`session`) is known when it is mounted and never changes; here a name may take a request to a registry before
it is known to exist. So every request is answered by a thread of its own, names and attributes are valid for a moment
only, and what does not exist is asked for again. Nothing can be changed, but a tree may take CREATE and RMDIR as messages
(`VirtualTree.create`): containers/storage speaks to additional layer stores that way.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import struct
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

from snapshotter.errors import UnsupportedError
from snapshotter.mount import wire
from snapshotter.mount.errnos import errno_of
from snapshotter.mount.journal import Journal
from snapshotter.mount.wire import Negotiated, Opcode, Request

THREADS = 64
"""Requests that may wait at once."""
VALIDITY = 1
"""Seconds for which the kernel may answer a name or attributes by itself: a path is walked several times in a row."""

_OPEN_OUT = struct.Struct("<QII")  # fh open_flags padding
_CREATE_IN_SIZE = 16  # fuse_create_in, from 7.12 on

Buffers = Sequence[bytes]


class Node(NamedTuple):
    """A file, directory or symlink: `mode` with type bits, `size` in bytes."""

    ino: int
    mode: int
    size: int = 0


class VirtualTree(Protocol):
    """What is served. Methods are called from many threads and may wait.

    They raise `NotFoundError` for an inode number that means nothing (any more), and other `PuzzlefsError`s for what cannot
    be had now.
    """

    def lookup(self, parent: int, name: bytes) -> Node | None:
        """What `name` is in the directory `parent`; None if there is no such name."""
        ...

    def node(self, ino: int) -> Node:
        """The node with this number; the root's is 1."""
        ...

    def names(self, ino: int) -> Sequence[tuple[bytes, Node]]:
        """The names in directory `ino`."""
        ...

    def readlink(self, ino: int, caller: int) -> bytes:
        """The target of symlink `ino` for the thread `caller`."""
        ...

    def read(self, ino: int, offset: int, size: int) -> bytes:
        """Up to `size` bytes of file `ino` from `offset` on; fewer only at its end."""
        ...

    def create(self, parent: int, name: bytes) -> int:
        """Somebody creates a file: the errno that is answered."""
        ...

    def rmdir(self, parent: int, name: bytes) -> int:
        """Somebody removes a directory: the errno that is answered."""
        ...


class VirtualSession:
    """The protocol of one mount of `tree`: what the kernel asks, and what is answered. No I/O of its own."""

    def __init__(
        self,
        tree: VirtualTree,
        on_failure: Callable[[str, Exception], None] = lambda what, error: None,
        negotiated: Negotiated | None = None,
    ) -> None:
        """`on_failure` is told what was asked and why it failed, where that is not the caller's own fault.

        `negotiated`: what an earlier server of this mount agreed on; INIT is not expected then.
        """
        self.negotiated = negotiated
        self._tree = tree
        self._on_failure = on_failure
        self._handlers: dict[int, Callable[[Request], bytes]] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.READLINK: lambda request: self._tree.readlink(request.nodeid, request.pid),
            Opcode.READ: self._read,
            Opcode.OPENDIR: lambda request: _OPEN_OUT.pack(0, 0, 0),  # ENOSYS would let the kernel keep a listing for good
            Opcode.READDIR: self._readdir,
            Opcode.STATFS: lambda request: wire.pack_statfs_out(0, 0),
            Opcode.CREATE: self._create,
            Opcode.MKNOD: self._create,  # where the kernel does not know CREATE; its head has the same length
            Opcode.RMDIR: self._rmdir,
            Opcode.INIT: self._init,
            Opcode.DESTROY: lambda request: b"",
            Opcode.RELEASE: lambda request: b"",
            Opcode.RELEASEDIR: lambda request: b"",
        }

    def handle(self, data: memoryview) -> Buffers | None:
        """The answer to one request, None where the kernel expects none. Never raises: what goes wrong becomes an errno."""
        try:
            request = wire.parse_request(data)
        except wire.MalformedRequestError as error:
            return None if error.unique is None else [wire.pack_header(error.unique, 0, errno.EINVAL)]
        if request.opcode in wire.NO_REPLY:
            return None
        handler = self._handlers.get(request.opcode)
        if handler is None:
            number = errno.EROFS if request.opcode in wire.WRITING else errno.ENOSYS
            return [wire.pack_header(request.unique, 0, number)]
        try:
            payload = handler(request)
        except _AnswerError as answer:
            return [wire.pack_header(request.unique, 0, answer.number)]
        except Exception as error:  # the last barrier before the kernel: one failed answer must not end the others
            number = errno_of(error)
            if number != errno.ENOENT:
                self._on_failure(f"{_name_of(request.opcode)} of inode {request.nodeid}", error)
            return [wire.pack_header(request.unique, 0, number)]
        return [wire.pack_header(request.unique, len(payload)), payload]

    def _init(self, request: Request) -> bytes:
        kernel = wire.parse_init(request)
        if kernel.major > wire.MAJOR:
            return wire.pack_init_major()
        try:
            agreed = wire.negotiate(kernel, acls=False)
        except UnsupportedError as error:
            self._on_failure("INIT", error)
            raise
        # names are listed by the tree at no cost, their attributes may take a request to a registry; a symlink may lead each
        # thread somewhere else
        unwanted = wire.InitFlag.DO_READDIRPLUS | wire.InitFlag.CACHE_SYMLINKS
        self.negotiated = agreed._replace(flags=agreed.flags & ~unwanted)
        return wire.pack_init(self.negotiated)

    def _lookup(self, request: Request) -> bytes:
        node = self._tree.lookup(request.nodeid, wire.parse_lookup(request))
        if node is None:  # not a negative entry: the name may come to exist, and a million of them shall cost no memory
            raise _AnswerError(errno.ENOENT)
        return wire.pack_entry_out(_attr(node), VALIDITY)

    def _getattr(self, request: Request) -> bytes:
        return wire.pack_attr_out(_attr(self._tree.node(request.nodeid)), VALIDITY)

    def _read(self, request: Request) -> bytes:
        offset, size = wire.parse_read(request)
        return self._tree.read(request.nodeid, offset, size)

    def _readdir(self, request: Request) -> bytes:
        offset, size = wire.parse_read(request)
        entries = [(b".", Node(request.nodeid, stat.S_IFDIR)), (b"..", Node(wire.UNKNOWN_INO, stat.S_IFDIR))]
        entries += self._tree.names(request.nodeid)
        records = (
            wire.pack_dirent(node.ino, node.mode, at + 1, name) for at, (name, node) in enumerate(entries) if at >= offset
        )
        return wire.join_records(records, size)

    def _create(self, request: Request) -> bytes:
        raise _AnswerError(self._tree.create(request.nodeid, _trailing_name(request, _CREATE_IN_SIZE)))

    def _rmdir(self, request: Request) -> bytes:
        raise _AnswerError(self._tree.rmdir(request.nodeid, _trailing_name(request, 0)))


class VirtualServer:
    """Serves a session over the FUSE connection `fd`, which stays the caller's, from `start` until `stop` or the unmount."""

    def __init__(self, fd: int, journal: Journal, session: VirtualSession) -> None:
        """`journal`, the server's to close, has what an earlier server of this connection left unanswered."""
        self._fd = fd
        self._journal = journal
        self._session = session
        self._lock = threading.Lock()
        self._stopping = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._pool = ThreadPoolExecutor(THREADS, "virtual")
        self._thread = threading.Thread(target=self._run, name="virtual-fuse", daemon=True)

    def start(self) -> None:
        """Begin to answer; returns at once. Once."""
        os.set_blocking(self._fd, False)
        self._thread.start()

    def stop(self) -> None:
        """Answer no more, after what is under way. The connection is left as it is, for a successor. Once, after `start`."""
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._pool.shutdown()
        os.close(self._wake)
        self._journal.close()

    def _run(self) -> None:
        for slot, request in self._journal.unanswered():
            self._begin(slot, request)
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        landing = self._journal.landing
        while True:
            poll.poll()
            if self._stopping:
                return
            try:
                length = os.readv(self._fd, [landing])
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EINTR, errno.ENOENT):
                    continue
                return  # ENODEV: unmounted
            with self._lock:
                slot = self._journal.keep(landing[:length])
            self._begin(slot, bytes(landing[:length]))

    def _begin(self, slot: int | None, request: bytes) -> None:
        if self._session.negotiated is None:  # INIT, which nothing may overtake
            self._answer(slot, request)
        else:
            self._pool.submit(self._answer, slot, request)

    def _answer(self, slot: int | None, request: bytes) -> None:
        fresh = self._session.negotiated is None
        reply = self._session.handle(memoryview(request))
        if fresh and self._session.negotiated is not None:
            # Before the answer: once the kernel has that, it never sends INIT again.
            self._journal.agree(self._session.negotiated)
        if reply is not None:
            with contextlib.suppress(OSError):  # nobody waits for it any more
                os.writev(self._fd, reply)
        with self._lock:
            self._journal.done(slot)


class _AnswerError(Exception):
    """An answer that is an errno without anything having failed."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _attr(node: Node) -> wire.Attr:
    nlink = 2 if stat.S_ISDIR(node.mode) else 1
    return node.ino, node.mode, nlink, 0, 0, node.size, -(-node.size // 512), 0, 0, 0


def _trailing_name(request: Request, skipped: int) -> bytes:
    return wire.parse_lookup(request._replace(body=request.body[skipped:]))


def _name_of(opcode: int) -> str:
    try:
        return Opcode(opcode).name
    except ValueError:
        return f"opcode {opcode}"
