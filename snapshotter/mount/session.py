"""The native engine's protocol, for one mount: what the kernel asks, and what is answered. No I/O.

A session keeps nothing about the kernel but what INIT agreed on: node ids are inode numbers, opens are answered ENOSYS once
and never asked again ("zero-message opens", Linux's fuse_file_open), and every name and attribute is valid for good. So
FORGET means nothing here, and a new server can take a mount over in the middle of anything.

`Session.handle` answers what is in memory at once. A READ (`ReadJob`) it only hands back: `at_hand` answers it if its chunks
are in memory, `read` in any case, where waiting does no harm.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from snapshotter.chunkstore.base import AtHand, ChunkStore, Foreseeing
from snapshotter.errors import CorruptError, NotFoundError, UnsupportedError
from snapshotter.mount import wire
from snapshotter.mount.errnos import errno_of
from snapshotter.mount.foresight.loading import Loading
from snapshotter.mount.foresight.places import Places
from snapshotter.mount.foresight.scan import SCAN_LENGTH, SCAN_STEP, SWEEP_LENGTH, Readers
from snapshotter.mount.foresight.sweep import Sweep
from snapshotter.mount.listing import Listing, Walk, records
from snapshotter.mount.pieces import BATCH_CHUNKS, read_at_hand, read_if_there, read_pieces
from snapshotter.mount.tree import Piece, Tree
from snapshotter.mount.wire import Negotiated, Opcode, Request

Buffers = Sequence[bytes | memoryview]
"""A reply, in parts to be written with one writev(2)."""

AT_HAND_MAX = 256 << 10
"""Bytes of the longest read that is answered by the event loop itself; a longer one is worth a thread, and another core."""

AHEAD_MAX = 64 << 10
"""Bytes of the next file of a scan that are looked for ahead: reading and hashing them takes 50 µs, about what a reader takes
from one file to the next."""
WHOLE_MAX = 16 << 10
"""Bytes of the longest next file of a scan whose answer is made ahead: every mount may keep one."""

_NO_FILE: tuple[int | None, bytes] = (None, b"")

_log = logging.getLogger(__name__)


class ReadJob(NamedTuple):
    """A READ that waits to be done: `size` bytes of file `ino` from `offset` on, for the request `unique` of thread `pid`.

    `ahead`: with it what its reader comes to next has to be brought (`Session.sweep`), even where nobody waits for it any more.
    """

    unique: int
    ino: int
    offset: int
    size: int
    pid: int
    ahead: bool = False


class Interrupt(NamedTuple):
    """The caller of the request `unique` has a signal pending."""

    unique: int


class Failure(NamedTuple):
    """Something of a mount could not be served. `length` is 0 where it was not file data."""

    ino: int
    offset: int
    length: int
    error: Exception


class Session:
    """Answers the requests of one mount of `tree`, with chunks from `store`."""

    def __init__(
        self, tree: Tree, store: ChunkStore, on_failure: Callable[[Failure], None], negotiated: Negotiated | None = None
    ) -> None:
        """`negotiated`: what an earlier server of this mount agreed on; INIT is not expected then.

        `on_failure` is called for everything that ends in an error which is not the caller's own, from whatever thread
        found it. It must not wait.
        """
        self.tree = tree
        self.negotiated = negotiated
        self.refused: UnsupportedError | None = None
        """Why the kernel was refused at INIT, if it was."""
        self._store = store
        self._near: AtHand | None = store if isinstance(store, AtHand) else None
        self._foreseeing: Foreseeing | None = store if isinstance(store, Foreseeing) else None
        self._places = Places(tree)
        self._loading = Loading(tree, self._places, self._foreseeing, store.has) if self._foreseeing is not None else None
        self._on_failure = on_failure
        self._readers = Readers()
        self._next_file = _NO_FILE  # which is going to be read, and all that it holds
        self._walk = Walk()
        self._listing: Listing | None = None  # what was listed last
        self._ahead: Listing | None = None  # what is going to be, or some of it
        self._sweeping = threading.Lock()
        self._sweep: Sweep | None = None

    def handle(self, data: memoryview) -> Buffers | ReadJob | Interrupt | None:
        """The answer to the request in `data` (all that one read of /dev/fuse gave); None where the kernel expects none.

        Never raises: what goes wrong becomes an errno.
        """
        try:
            request = wire.parse_request(data)
        except wire.MalformedRequestError as error:
            return None if error.unique is None else [wire.pack_header(error.unique, 0, errno.EINVAL)]
        opcode = request.opcode
        try:
            if opcode == Opcode.GETXATTR and not self.tree.may_have_xattrs(request.nodeid):
                # overlayfs asks this of every file that it looks up (ovl_check_metacopy_xattr).
                return [wire.pack_header(request.unique, 0, errno.ENODATA)]
            if opcode == Opcode.READ:
                offset, size = wire.parse_read(request)
                ahead = self._follow(request.pid, request.nodeid, offset)
                return ReadJob(request.unique, request.nodeid, offset, size, request.pid, ahead)
            if opcode in wire.NO_REPLY:
                return Interrupt(wire.parse_interrupt(request)) if opcode == Opcode.INTERRUPT else None
            handler = _HANDLERS.get(opcode)
            if handler is None:
                # ENOSYS makes the kernel stop asking, and do what is right without a server's help: no message per open,
                # flush and poll, SEEK_DATA from the size.
                return [wire.pack_header(request.unique, 0, errno.EROFS if opcode in wire.WRITING else errno.ENOSYS)]
            payload = handler(self, request)
            return [wire.pack_header(request.unique, len(payload)), payload]
        except _ErrnoError as answer:
            return [wire.pack_header(request.unique, 0, answer.number)]
        except Exception as error:  # the last barrier before the kernel: a mount must outlive any mistake in one answer
            if not isinstance(error, wire.MalformedRequestError):
                self._on_failure(Failure(request.nodeid, 0, 0, error))
            return [wire.pack_header(request.unique, 0, errno_of(error))]

    def refuse(self, data: memoryview, error: Exception) -> Buffers | None:
        """As `handle`, but the answer is always `error`, which is reported."""
        try:
            request = wire.parse_request(data)
            offset, size = wire.parse_read(request) if request.opcode == Opcode.READ else (0, 0)
        except wire.MalformedRequestError as malformed:
            return None if malformed.unique is None else [wire.pack_header(malformed.unique, 0, errno.EINVAL)]
        if request.opcode in wire.NO_REPLY:
            return None
        self._on_failure(Failure(request.nodeid, offset, size, error))
        return [wire.pack_header(request.unique, 0, errno.EIO)]

    def at_hand(self, job: ReadJob) -> Buffers | None:
        """The answer to a READ, if it is short and all its chunks are in memory. Never raises, and never waits."""
        if self._near is None or job.size > AT_HAND_MAX or job.ahead:
            return None
        ino, content = self._next_file
        if ino == job.ino and not job.offset and len(content) <= job.size:
            return [wire.pack_header(job.unique, len(content)), content]
        return self._if_at_hand(job, self._near)

    def look_ahead(self) -> None:
        """Have in memory what a scan reads next, or some of what a walk lists next: for moments in which nobody asks anything.

        For the thread that calls `handle`, once after each request. Takes as long as a read of `AHEAD_MAX` bytes at hand, waits
        for nothing and never raises; what is found is checked and kept like all that is read.
        """
        after = self._readers.take()
        if after is not None and self._near is not None:
            self._next_file = _NO_FILE
            ino = self.tree.next_file(after, SCAN_STEP)
            if ino is not None:
                found = self._if_at_hand(ReadJob(0, ino, 0, AHEAD_MAX, 0), self._near)
                if found is not None and sum(map(len, found[1:])) <= WHOLE_MAX:
                    self._next_file = (ino, b"".join(found[1:]))
            return
        if self._ahead is None:
            directory = self._walk.take()
            if directory is None:
                return
            self._ahead = Listing(self.tree, directory)
        try:
            self._ahead.extend()
        except Exception:  # the same comes to light when it is listed
            self._ahead = None

    def read_local(self, job: ReadJob) -> Buffers | None:
        """The answer to a READ, if the chunks are kept on this machine; waits for its disk. Never raises."""
        near = self._near
        return None if near is None else self._if_there(job, lambda pieces: read_if_there(pieces, near.local), wire.READ_MAX)

    def is_near(self, job: ReadJob) -> bool:
        """Whether this machine has all that `job` needs, in whatever store. Where the plan fails, yes: that is quickly had."""
        try:
            return all(self._store.has(piece.chunk.digest) for piece in self.tree.plan(job.ino, job.offset, job.size))
        except Exception:
            return True

    def read(self, job: ReadJob) -> Buffers:
        """The answer to a READ; waits for chunks. Never raises."""
        try:
            buffers = read_pieces(self.tree.plan(job.ino, job.offset, job.size), self._store)
        except Exception as error:
            return self._failed(job, error)
        return [wire.pack_header(job.unique, sum(map(len, buffers))), *buffers]

    def read_far(self, job: ReadJob) -> Buffers:
        """As `read`, for what is not on this machine: what is going to be read with it is brought too (`companions`), or where
        somebody reads all files, those (`sweep`)."""
        if self._foreseeing is not None and self._readers.score(job.pid) >= SWEEP_LENGTH:
            self._begin_sweep(self._foreseeing, job)
        elif self._loading is not None and self._readers.score(job.pid) < SCAN_LENGTH:
            try:
                self._loading.missed(job.ino, job.offset, job.size)
            except Exception:
                _log.debug("what is read with inode %d could not be fetched", job.ino, exc_info=True)
        return self.read(job)

    def follow(self, job: ReadJob) -> None:
        """After `read_far`: fetch what is going to be read next (see `loading`). Never raises: it was nobody's wish."""
        if job.offset or self._loading is None or self._readers.score(job.pid) >= SCAN_LENGTH:
            return
        try:
            self._loading.begin(job.ino)
        except Exception:
            _log.debug("what is loaded of inode %d could not be fetched", job.ino, exc_info=True)

    def sweep(self) -> None:
        """Have brought what the reader of a job that is `ahead` comes to next. Waits for no chunk, and never raises."""
        sweep = self._sweep
        if sweep is not None:
            try:
                sweep.step()
            except Exception:
                _log.debug("what a reader of all files comes to could not be fetched", exc_info=True)

    def _begin_sweep(self, store: Foreseeing, job: ReadJob) -> None:
        """The reader of `job`, which misses something, goes on to read all files: bring them before it comes there."""
        with self._sweeping:
            if self._sweep is not None and not self._sweep.over:
                return
            self._sweep = Sweep(self.tree, self._places, store, job.pid, job.ino)
        self.sweep()

    def _follow(self, reader: int, ino: int, offset: int) -> bool:
        """`reader` reads file `ino` from `offset` on; whether something has to be brought ahead of it."""
        if not offset:
            self._readers.begun(reader, ino)
        return self._sweep is not None and self._sweep.at(reader, ino, offset)

    def _if_at_hand(self, job: ReadJob, near: AtHand) -> Buffers | None:
        return self._if_there(job, lambda pieces: read_at_hand(pieces, near), BATCH_CHUNKS)

    def _if_there(self, job: ReadJob, read: Callable[[Sequence[Piece]], Buffers | None], pieces_max: int) -> Buffers | None:
        """What `read` gives for `job`; None where it lacks something, or where there are more pieces than may be asked for."""
        try:
            pieces = self.tree.plan(job.ino, job.offset, job.size)
            buffers = read(pieces) if len(pieces) <= pieces_max else None
        except Exception:  # the same comes to light in `read`, which reports it
            return None
        return None if buffers is None else [wire.pack_header(job.unique, sum(map(len, buffers))), *buffers]

    def _failed(self, job: ReadJob, error: Exception) -> Buffers:
        self._on_failure(Failure(job.ino, job.offset, job.size, error))
        # To read(2) there is only one way to fail for a file that exists; ENOENT and EINVAL mean something else there.
        return [wire.pack_header(job.unique, 0, errno.EIO)]

    def _init(self, request: Request) -> bytes:
        kernel = wire.parse_init(request)
        if kernel.major > wire.MAJOR:
            return wire.pack_init_major()
        try:
            self.negotiated = wire.negotiate(kernel, acls=self.tree.has_acls)
        except UnsupportedError as error:
            self.refused = error
            raise
        return wire.pack_init(self.negotiated)

    def _lookup(self, request: Request) -> bytes:
        name = wire.parse_lookup(request)
        if len(name) > wire.NAME_MAX:
            raise _ErrnoError(errno.ENAMETOOLONG)
        ino = self.tree.lookup(request.nodeid, name)
        if ino is None:
            return wire.NEGATIVE_ENTRY
        try:
            return wire.pack_entry_out(self.tree.attributes(ino))
        except NotFoundError as error:  # ENOENT would deny the name that readdir shows
            raise CorruptError(f"a directory entry leads to a missing inode: {error}") from error

    def _getattr(self, request: Request) -> bytes:
        return wire.pack_attr_out(self.tree.attributes(request.nodeid))

    def _readlink(self, request: Request) -> bytes:
        return self.tree.readlink(request.nodeid)

    def _readdir(self, request: Request) -> bytes:
        offset, size = wire.parse_read(request)
        return wire.join_records(records(self.tree, request.nodeid, offset, plus=False), size)

    def _readdirplus(self, request: Request) -> bytes:
        offset, size = wire.parse_read(request)
        ino = request.nodeid
        listing, self._listing = self._listing, None  # one that fails is not gone on with
        if not offset:
            ahead, self._ahead = self._ahead, None
            listing = ahead if ahead is not None and ahead.ino == ino else Listing(self.tree, ino)
        elif listing is None or listing.ino != ino:  # somebody else began to list another one meanwhile
            return wire.join_records(records(self.tree, ino, offset, plus=True), size)
        answer = listing.take(offset, size)
        self._listing = listing
        if not answer:
            self._walk.listed(ino, listing.directories)
        return answer

    def _statfs(self, request: Request) -> bytes:
        return wire.pack_statfs_out(*self.tree.statfs())

    def _getxattr(self, request: Request) -> bytes:
        # Never ENOSYS, here and above, which the kernel would remember: getxattr(2) would fail with EOPNOTSUPP. containerd's
        # differ takes only ENODATA for "no capabilities" (continuity, fs/diff_unix.go): no container could be committed.
        size, name = wire.parse_getxattr(request)
        value = self.tree.xattrs(request.nodeid).get(name)
        if value is None:
            raise _ErrnoError(errno.ENODATA)
        return _sized(value, size)

    def _listxattr(self, request: Request) -> bytes:
        # Never ENOSYS: listxattr(2) would fail in the container, where on other file systems it gives an empty list.
        size = wire.parse_listxattr(request)
        return _sized(b"".join(name + b"\0" for name in self.tree.xattrs(request.nodeid)), size)


class _ErrnoError(Exception):
    """An answer that is an errno without anything having failed."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _nothing(session: Session, request: Request) -> bytes:
    return b""


def _ioctl(session: Session, request: Request) -> bytes:
    # Not ENOSYS: it spares no message, and kernels such as 5.10 show it to the caller.
    raise _ErrnoError(errno.ENOTTY)


# Functions and not methods of each session: with those, a session would be in a circle, and go only when one is looked for.
_HANDLERS: Mapping[int, Callable[[Session, Request], bytes]] = {
    Opcode.LOOKUP: Session._lookup,
    Opcode.GETATTR: Session._getattr,
    Opcode.READLINK: Session._readlink,
    Opcode.READDIR: Session._readdir,
    Opcode.READDIRPLUS: Session._readdirplus,
    Opcode.GETXATTR: Session._getxattr,
    Opcode.LISTXATTR: Session._listxattr,
    Opcode.STATFS: Session._statfs,
    Opcode.IOCTL: _ioctl,
    Opcode.INIT: Session._init,
    Opcode.DESTROY: _nothing,
    Opcode.RELEASE: _nothing,
    Opcode.RELEASEDIR: _nothing,
}


def _sized(value: bytes, size: int) -> bytes:
    """The answer to GETXATTR and LISTXATTR for a caller's buffer of `size` bytes."""
    if size == 0:
        return wire.pack_xattr_size(len(value))
    if len(value) > size:
        raise _ErrnoError(errno.ERANGE)
    return value
