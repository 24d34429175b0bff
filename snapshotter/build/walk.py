"""Reads a directory on disk into a tree of nodes.

One file system: the entries of a mount point in it are taken, the directories among them come out empty, as upstream has it.
Names are bytes. Extended attributes are those that the caller may see, sorted when they are encoded, because file systems
list them in different orders.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection

from snapshotter.build.entries import Content, Node, Stamp, stamp
from snapshotter.build.shelf import Shelf
from snapshotter.errors import FailedPreconditionError, InvalidError, NotFoundError, UnavailableError
from snapshotter.format.model import Kind

_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIR,
    stat.S_IFLNK: Kind.LNK,
    stat.S_IFCHR: Kind.CHR,
    stat.S_IFBLK: Kind.BLK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCK,
}

_DROPPED = (b"trusted.SGI_ACL_FILE", b"trusted.SGI_ACL_DEFAULT")
"""What xfs shows to root beside a POSIX ACL that says the same; other file systems do not have them."""


def walk(path: str | bytes | os.PathLike[str], shelf: Shelf | None = None, *, every_xattr: bool = False) -> Node:
    """The tree below the directory `path`; files' contents have their path, and the stamp by which a change is noticed.

    What of a large one is not looked at is put on the `shelf`, if there is one.
    With `every_xattr` attributes are taken that depend on the file system and not on the tree, as upstream's builder does.

    Raises:
        NotFoundError: there is no `path`.
        InvalidError: `path` is not a directory, or a path in it is too long to be read.
        FailedPreconditionError: something in it cannot be read.
    """
    top = os.fsencode(path)
    try:
        status = os.stat(top)
    except FileNotFoundError:
        raise NotFoundError(f"no such directory: {os.fsdecode(top)}") from None
    except OSError as error:
        raise _failure(top, error) from None
    if not stat.S_ISDIR(status.st_mode):
        raise InvalidError(f"{os.fsdecode(top)} is not a directory")
    device = status.st_dev
    dropped = () if every_xattr else _DROPPED
    root = _node(top, b".", status, dropped)
    pending = [(top, root, device)]
    linked: dict[tuple[int, int], Node] = {}
    while pending:
        directory, parent, here = pending.pop()
        names = parent.names()
        try:
            with os.scandir(directory) as found:
                entries = [entry.name for entry in found]
        except OSError as error:
            raise _failure(directory, error) from None
        for name in entries:
            place = directory + b"/" + name
            try:
                status = os.lstat(place)
            except OSError as error:
                raise _failure(place, error) from None
            identity = (status.st_dev, status.st_ino)
            node = linked.get(identity)
            if node is None:
                node = _node(directory, name, status, dropped)
                if node.kind is Kind.DIR:
                    # In a mounted directory its own entries are taken, but what lies deeper is left out.
                    if here == device:
                        pending.append((place, node, status.st_dev))
                elif status.st_nlink > 1:
                    linked[identity] = node
                    node.is_shared = True
            names[name] = node
            if shelf is not None:
                shelf.added(parent)
    if shelf is not None:
        shelf.settle()
    return root


def _node(directory: bytes, name: bytes, status: os.stat_result, dropped: Collection[bytes]) -> Node:
    path = directory + b"/" + name
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    seconds, nanoseconds = divmod(status.st_mtime_ns, 1_000_000_000)
    node = Node(
        kind,
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        seconds,
        nanoseconds,
        xattrs=_xattrs(path, dropped),
    )
    if kind is Kind.FILE:
        node.content = Content(status.st_size, directory=directory, name=name, stamp=_stamp(status))
    elif kind is Kind.LNK:
        try:
            node.target = os.readlink(path)
        except OSError as error:
            raise _failure(path, error) from None
    elif kind in (Kind.CHR, Kind.BLK):
        node.device = (os.major(status.st_rdev), os.minor(status.st_rdev))
    return node


def _stamp(status: os.stat_result) -> Stamp:
    return stamp(status.st_ino, status.st_mtime_ns, status.st_ctime_ns)


def _xattrs(path: bytes, dropped: Collection[bytes]) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    try:
        for text in os.listxattr(path, follow_symlinks=False):
            key = os.fsencode(text)
            if key in dropped:
                continue
            try:
                found[key] = os.getxattr(path, key, follow_symlinks=False)
            except OSError as error:
                # Removed meanwhile, or listed by the file system but handled by a module that is off.
                if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                    raise
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise _failure(path, error) from None
    return found


class FileReader:
    """Reads one file that `walk` found, exactly as it was then."""

    def __init__(self, path: bytes, size: int, stamp: Stamp | None = None) -> None:
        """Open `path`, of which `size` bytes are expected, and `stamp` if it is known.

        Raises:
            FailedPreconditionError: it cannot be opened, or is no regular file any more.
        """
        self._path = path
        self._size = self._rest = size
        self._stamp = stamp
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise _failure(path, error) from None
        self._check()

    def readinto(self, buffer: memoryview, /) -> int:
        """Read up to ``len(buffer)`` bytes; 0 at the end.

        Raises:
            FailedPreconditionError: the file cannot be read, or has been written to. To cut it, to fill it, or to take one
                half from before and one from after would give an image of a file that never existed.
        """
        try:
            if not self._rest:
                if self._fd >= 0:
                    if os.read(self._fd, 1):
                        raise self._changed()
                    self._check()
                    self.close()
                return 0
            count = os.readv(self._fd, [buffer[: self._rest]])
        except OSError as error:
            raise _failure(self._path, error) from None
        if not count and len(buffer):
            raise self._changed()
        self._rest -= count
        return count

    def close(self) -> None:
        """Close the file; reading it to its end does so too."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        """A cut that fails half-way drops its reader."""
        self.close()

    def _check(self) -> None:
        status = os.fstat(self._fd)
        known = self._stamp is None or (status.st_size, _stamp(status)) == (self._size, self._stamp)
        if not known or not stat.S_ISREG(status.st_mode):
            self.close()
            raise self._changed()

    def _changed(self) -> FailedPreconditionError:
        return FailedPreconditionError(
            f"{os.fsdecode(self._path)} changed while it was read, or is no ordinary file (as in /proc):"
            " build from a tree that nothing writes to, like a snapshot"
        )


def check_empty(path: bytes, stamp: Stamp | None) -> None:
    """Whether a file that had no bytes has none: those of /proc say so and have some.

    One that may not be opened is believed; its owner alone could build an image of it, with or without bytes.

    Raises:
        FailedPreconditionError: it has bytes now.
    """
    if os.access(path, os.R_OK):
        FileReader(path, 0, stamp).readinto(memoryview(b""))


def _failure(path: bytes, error: OSError) -> FailedPreconditionError | InvalidError | UnavailableError:
    name = os.fsdecode(path[:200])
    if error.errno == errno.ENAMETOOLONG:
        return InvalidError(f"the path {name}… is longer than the system's limit of 4096 bytes")
    if error.errno in (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return UnavailableError(f"cannot read {name}: {error.strerror}")
    return FailedPreconditionError(f"cannot read {name}: {error.strerror}")
