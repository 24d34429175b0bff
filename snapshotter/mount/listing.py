"""What READDIR and READDIRPLUS answer: the records of a directory, and which directory a walk lists next.

Half of what a cold walk costs the server is making records (5 µs each). `Listing` makes them one by one, so that they can be
made before they are asked for, in the moments in which nobody asks anything; `Walk` says of which directory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from snapshotter.errors import CorruptError, NotFoundError
from snapshotter.format.model import ROOT_INO
from snapshotter.mount import wire
from snapshotter.mount.tree import Tree

KEPT_MAX = 512
"""Records of a directory that are kept, some 100 KB; what lies behind them is made when it is asked for."""
PENDING_MAX = 4096
"""Directories that a walk is known to have before it; of more, those that come last are forgotten."""

_COOKIE_DOT = 1
_COOKIE_DOTDOT = 2
_TYPE = 0o170000
_DIRECTORY = 0o040000


def records(tree: Tree, ino: int, offset: int, *, plus: bool, directories: list[int] | None = None) -> Iterator[bytes]:
    """The records of directory `ino` from cookie `offset` on; record number n, from 1, has the cookie n. The directories among
    them are added to `directories`.

    Raises:
        CorruptError, NotFoundError: see `Tree.entries`.
    """
    entries = tree.entries(ino)
    # An entry for . or .. carries no node: the kernel ignores it there (fuse_direntplus_link).
    blank = wire.NO_ENTRY if plus else b""
    if offset < _COOKIE_DOT:
        yield blank + wire.pack_dirent(ino, _DIRECTORY, _COOKIE_DOT, b".")
    if offset < _COOKIE_DOTDOT:
        parent = ino if ino == ROOT_INO else wire.UNKNOWN_INO
        yield blank + wire.pack_dirent(parent, _DIRECTORY, _COOKIE_DOTDOT, b"..")
    cookie = max(offset, _COOKIE_DOTDOT)
    for entry in itertools.islice(entries, cookie - _COOKIE_DOTDOT, None):
        cookie += 1
        try:
            attributes = tree.entry_attributes(entry)
        except (CorruptError, NotFoundError):
            # The name is listed, and who asks for it gets the error. (glibc leaves entries with number 0 out.)
            yield blank + wire.pack_dirent(entry.ino or wire.UNKNOWN_INO, 0, cookie, entry.name)
            continue
        if directories is not None and attributes.mode & _TYPE == _DIRECTORY:
            directories.append(entry.ino)
        if plus:
            yield wire.pack_direntplus(attributes, cookie, entry.name)
        else:
            yield wire.pack_dirent(entry.ino, attributes.mode, cookie, entry.name)


class Listing:
    """The records of directory `ino` for READDIRPLUS, made when they are needed or before."""

    def __init__(self, tree: Tree, ino: int, kept_max: int = KEPT_MAX) -> None:
        """Nothing is made yet; `kept_max` records are kept at most."""
        self.ino = ino
        self.directories: list[int] = []
        """The directories among the records that were made, in their order."""
        self._tree = tree
        self._kept_max = kept_max
        self._records: list[bytes] = []
        self._rest = records(tree, ino, 0, plus=True, directories=self.directories)
        self._whole = False

    def extend(self) -> bool:
        """Make one record more; False where there is none, or no more are kept.

        Raises:
            CorruptError, NotFoundError: as `records`.
        """
        if self._whole or len(self._records) >= self._kept_max:
            return False
        record = next(self._rest, None)
        if record is None:
            self._whole = True
            return False
        self._records.append(record)
        return True

    def take(self, offset: int, size: int) -> bytes:
        """The records from cookie `offset` on, as many as `size` bytes take; none at the end.

        Raises:
            CorruptError, NotFoundError: as `records`.
        """
        if offset >= self._kept_max:
            return wire.join_records(records(self._tree, self.ino, offset, plus=True), size)
        return wire.join_records(self._from(offset), size)

    def _from(self, offset: int) -> Iterator[bytes]:
        while offset < len(self._records) or self.extend():
            yield from self._records[offset:]
            offset = max(offset, len(self._records))


class Walk:
    """Foresees the directories that are listed, of a walk that lists one, goes into each of those in it, and then on."""

    def __init__(self) -> None:
        self._pending: list[int] = []  # the next one stands last
        self._next: int | None = None

    def listed(self, ino: int, directories: Sequence[int]) -> None:
        """Directory `ino` was listed, and has `directories`."""
        pending = self._pending
        while pending and pending.pop() != ino:
            pass
        pending += reversed(directories)
        del pending[:-PENDING_MAX]
        self._next = pending[-1] if pending else None

    def take(self) -> int | None:
        """The directory that is going to be listed, told once; None where nothing is foreseen."""
        ino, self._next = self._next, None
        return ino
