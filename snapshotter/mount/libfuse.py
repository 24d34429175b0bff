"""The pyfuse3 engine: a mount by libfuse and fusermount3, which an unprivileged user can have.

It serves the same `Tree` as the native engine, one mount a process (pyfuse3's session is global to it), and costs a message
for every open. Handlers answer in the event loop what is in memory; reads run in threads.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyfuse3
import trio

from snapshotter.chunkstore.base import ChunkStore
from snapshotter.errors import CorruptError, FailedPreconditionError, NotFoundError
from snapshotter.format.rootfs import BLOCK_SIZE
from snapshotter.mount import wire
from snapshotter.mount.errnos import errno_of
from snapshotter.mount.mounting import raise_read_ahead
from snapshotter.mount.pieces import read_pieces
from snapshotter.mount.session import Failure
from snapshotter.mount.tree import Attributes, Tree

_log = logging.getLogger(__name__)


class _Operations(pyfuse3.Operations):
    """Adapts a `Tree` to pyfuse3. File handles are inode numbers: nothing is kept between calls."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(self, tree: Tree, store: ChunkStore, on_failure: Callable[[Failure], None]) -> None:
        super().__init__()
        self._tree = tree
        self._store = store
        self._on_failure = on_failure
        self.enable_acl = tree.has_acls

    @contextmanager
    def _errors(self, ino: int) -> Iterator[None]:
        """Turns what goes wrong into the one exception that pyfuse3 lets a handler raise."""
        try:
            yield
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            self._on_failure(Failure(ino, 0, 0, error))
            raise pyfuse3.FUSEError(errno_of(error)) from error

    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """LOOKUP; inode 0 for a name that does not exist and never will."""
        if len(name) > wire.NAME_MAX:
            raise pyfuse3.FUSEError(errno.ENAMETOOLONG)
        with self._errors(parent_inode):
            ino = self._tree.lookup(parent_inode, name)
            if ino is None:
                return _blank(0)
            try:
                return _entry(self._tree.attributes(ino))
            except NotFoundError as error:
                raise CorruptError(f"a directory entry leads to a missing inode: {error}") from error

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """GETATTR."""
        with self._errors(inode):
            return _entry(self._tree.attributes(inode))

    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        """READLINK."""
        with self._errors(inode):
            return self._tree.readlink(inode)

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """OPENDIR."""
        return inode

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """READDIRPLUS; an entry that leads nowhere is listed without attributes."""
        with self._errors(fh):
            entries = self._tree.entries(fh)
            for index, (name, ino) in enumerate([(b".", fh), (b"..", wire.UNKNOWN_INO)][start_id:], start_id + 1):
                dots = _blank(ino)
                dots.st_mode = stat.S_IFDIR
                if not pyfuse3.readdir_reply(token, name, dots, index):
                    return
            for index in range(max(start_id - 2, 0), len(entries)):
                entry = entries[index]
                try:
                    attributes = _entry(self._tree.entry_attributes(entry))
                except (CorruptError, NotFoundError):
                    attributes = _blank(
                        entry.ino or wire.UNKNOWN_INO
                    )  # without a type: the kernel lists the name and takes no inode from it
                if not pyfuse3.readdir_reply(token, entry.name, attributes, index + 3):
                    return

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """OPEN, for reading."""
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise pyfuse3.FUSEError(errno.EROFS)
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """READ, in a thread."""
        return await trio.to_thread.run_sync(self._read, fh, off, size)

    def _read(self, ino: int, offset: int, size: int) -> bytes:
        try:
            return b"".join(read_pieces(self._tree.plan(ino, offset, size), self._store))
        except Exception as error:
            self._on_failure(Failure(ino, offset, size, error))
            raise pyfuse3.FUSEError(errno.EIO) from error  # as session.Session.read

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """STATFS of a file system that is full."""
        with self._errors(pyfuse3.ROOT_INODE):
            stats = self._tree.statfs()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = BLOCK_SIZE
        data.f_blocks = stats.blocks
        data.f_files = stats.inodes
        data.f_bfree = data.f_bavail = data.f_ffree = data.f_favail = 0
        data.f_namemax = wire.NAME_MAX
        return data

    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """GETXATTR."""
        with self._errors(inode):
            value = self._tree.xattrs(inode).get(name)
        if value is None:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return value

    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        """LISTXATTR."""
        with self._errors(inode):
            return list(self._tree.xattrs(inode))


def _blank(ino: int) -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = ino
    entry.st_mode = 0
    entry.entry_timeout = entry.attr_timeout = wire.FOREVER
    return entry


def _entry(attributes: Attributes) -> pyfuse3.EntryAttributes:
    entry = _blank(attributes.ino)
    entry.st_mode = attributes.mode
    entry.st_nlink = attributes.nlink
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_size = attributes.size
    entry.st_blocks = attributes.blocks
    entry.st_blksize = BLOCK_SIZE
    entry.st_rdev = attributes.rdev
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = attributes.mtime * 1_000_000_000 + attributes.mtime_nsec
    return entry


def serve(
    tree: Tree,
    store: ChunkStore,
    mountpoint: Path,
    options: set[str],
    ready: Callable[[], None],
    on_failure: Callable[[Failure], None],
) -> None:
    """Mount `tree` on `mountpoint` and serve it until it is unmounted, or SIGINT or SIGTERM comes, which unmount it.

    `options` come from `options.parse_options`; `ready` is called when the mount is there; `on_failure` for everything that
    ends in an error which is not the caller's own, from any thread. Must run in the main thread, once at a time.

    Raises:
        FailedPreconditionError: libfuse does not mount it; it writes the reason to stderr itself.
    """
    operations = _Operations(tree, store, on_failure)
    # A signal that comes when the mount is there and nobody listens yet would leave it to nobody: it is remembered. (Blocking
    # would not do: it is delivered to any thread that does not block it, and others run already.)
    early: list[int] = []
    before = {number: signal.signal(number, lambda got, _: early.append(got)) for number in _ENDING}
    try:
        _serve_mounted(operations, mountpoint, options, ready, early)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_ENDING = (signal.SIGINT, signal.SIGTERM)


def _serve_mounted(
    operations: _Operations, mountpoint: Path, options: set[str], ready: Callable[[], None], early: Sequence[int]
) -> None:
    try:
        pyfuse3.init(operations, str(mountpoint), options)
    except RuntimeError as error:
        raise FailedPreconditionError(
            f"mounting on {mountpoint}: libfuse refused ({error}), see its message above; is fuse3 installed, /dev/fuse open to"
            " you, the mountpoint an empty directory of yours, and, for allow_other, user_allow_other set in /etc/fuse.conf?"
        ) from error
    try:
        if os.geteuid() == 0:
            raise_read_ahead(mountpoint)
        ready()
        trio.run(_serve, early)
    finally:
        pyfuse3.close(unmount=True)


async def _serve(early: Sequence[int]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signal, nursery.cancel_scope, early)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


async def _stop_on_signal(scope: trio.CancelScope, early: Sequence[int]) -> None:
    with trio.open_signal_receiver(*_ENDING) as signals:
        if early:
            scope.cancel()
        async for number in signals:
            _log.info("unmounting on %s", signal.Signals(number).name)
            scope.cancel()
