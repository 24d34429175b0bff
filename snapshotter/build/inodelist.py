"""Inodes that are made in one order and needed in another, more often than once: in a file, where there are many."""

from __future__ import annotations

import heapq
import marshal
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from snapshotter.build.chunk import ChunkList
from snapshotter.build.spool import AppendFile
from snapshotter.format.model import DirEntry, Inode, Kind, Xattr

KEPT_MAX = 4 << 20
"""Bytes up to which they are kept in memory."""

_WINDOW = 1 << 16
_WHITEOUT = 0
_KINDS = {int(kind): kind for kind in Kind}


class InodeList:
    """Inodes by number. 28 bytes each are in memory. To be closed."""

    def __init__(self, directory: Path | None = None) -> None:
        """`directory`: where a file is made; by default, where the system keeps temporary files."""
        self._directory = directory
        self._numbers = array("Q")
        self._order = array("Q")
        self._places = array("Q")  # one more than where it is; `_WHITEOUT` for a whiteout
        # Most come by number: only the rows of the others have to be sorted.
        self._ascending = array("I")
        self._others = array("I")
        self._last = -1
        self._kept = bytearray()
        self._file: AppendFile | None = None
        self._window = b""
        self._start = 0

    def add(self, inode: Inode, order: int = 0) -> None:
        """One more. `order`: those of one number come in this order, and then as they were added.

        Raises:
            FailedPreconditionError: there is no room for it.
        """
        record = marshal.dumps(_record(inode))
        data = len(record).to_bytes(4, "little") + record
        if self._file is None and len(self._kept) + len(data) > KEPT_MAX:
            self._file = AppendFile(self._directory)
            self._file.append(bytes(self._kept))
            self._kept = bytearray()
        if self._file is None:
            self._places.append(len(self._kept) + 1)
            self._kept += data
        else:
            self._places.append(self._file.append(data) + 1)
        self._add(inode.ino, order)

    def add_whiteout(self, number: int) -> None:
        """One more: the number is gone."""
        self._places.append(_WHITEOUT)
        self._add(number, 0)

    def _add(self, number: int, order: int) -> None:
        if number > self._last:
            self._last = number
            self._ascending.append(len(self._numbers))
        else:
            self._others.append(len(self._numbers))
        self._numbers.append(number)
        self._order.append(order)

    def __contains__(self, inode: object) -> bool:
        return any(found == inode for found in self)

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Inode]:
        """All of them, ascending."""
        for row in self._rows():
            place = self._places[row]
            if place == _WHITEOUT:
                yield Inode(self._numbers[row], Kind.WHT, 0o644)
            else:
                yield _inode(marshal.loads(self._read(place - 1)))  # noqa: S302  of our own making

    def numbers(self) -> Iterator[int]:
        """Their numbers, ascending."""
        return map(self._numbers.__getitem__, self._rows())

    def _rows(self) -> Iterator[int]:
        numbers, order = self._numbers, self._order

        def key(row: int) -> tuple[int, int, int]:
            return numbers[row], order[row], row

        if not self._others:
            return iter(self._ascending)
        return heapq.merge(self._ascending, sorted(self._others, key=key), key=key)

    def close(self) -> None:
        """Give the space back."""
        if self._file is not None:
            self._file.close()

    def _read(self, place: int) -> bytes:
        if self._file is None:
            length = int.from_bytes(self._kept[place : place + 4], "little")
            return bytes(self._kept[place + 4 : place + 4 + length])
        start = place - self._start
        length = 4 + int.from_bytes(self._window[start : start + 4], "little") if 0 <= start <= len(self._window) - 4 else 0
        if not length or start + length > len(self._window):
            # They are asked for in nearly the order in which they were added.
            self._window = self._file.read(place, _WINDOW)
            start, self._start = 0, place
            length = 4 + int.from_bytes(self._window[:4], "little")
            if length > len(self._window):
                self._window = self._file.read(place, length)
        return self._window[start + 4 : start + length]


def _record(inode: Inode) -> tuple[Any, ...]:
    return (
        inode.ino,
        int(inode.kind),
        inode.permissions,
        inode.uid,
        inode.gid,
        inode.mtime,
        inode.mtime_nsec,
        inode.device,
        [(entry.ino, entry.name) for entry in inode.entries],
        inode.look_below,
        ChunkList(inode.chunks).packed,
        [(xattr.key, xattr.value) for xattr in inode.xattrs],
        inode.target,
    )


def _inode(record: tuple[Any, ...]) -> Inode:
    ino, kind, permissions, uid, gid, mtime, mtime_nsec, device, entries, look_below, chunks, xattrs, target = record
    return Inode(
        ino,
        _KINDS[kind],
        permissions,
        uid,
        gid,
        mtime,
        mtime_nsec,
        device,
        [DirEntry(*entry) for entry in entries],
        look_below,
        ChunkList.unpack(chunks),
        [Xattr(*xattr) for xattr in xattrs],
        target,
    )
