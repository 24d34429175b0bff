"""Inodes that are made in one order and needed in another, more often than once: in a file, where there are many."""

from __future__ import annotations

import marshal
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from operator import lt
from pathlib import Path
from typing import Any

from snapshotter.build.chunk import ChunkList
from snapshotter.build.spool import AppendFile
from snapshotter.format.model import DirEntry, Inode, Kind, Xattr

KEPT_MAX = 4 << 20
"""Bytes up to which they are kept in memory."""

_WHITEOUT = 0
_KINDS = {int(kind): kind for kind in Kind}


class InodeList:
    """Inodes by number. 24 bytes each are in memory. To be closed."""

    def __init__(self, directory: Path | None = None) -> None:
        """`directory`: where a file is made; by default, where the system keeps temporary files."""
        self._directory = directory
        self._numbers = array("Q")
        self._order = array("Q")
        self._places = array("Q")  # one more than where it is; `_WHITEOUT` for a whiteout
        self._kept = bytearray()
        self._file: AppendFile | None = None

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
        self._numbers.append(inode.ino)
        self._order.append(order)

    def add_whiteout(self, number: int) -> None:
        """One more: the number is gone."""
        self._numbers.append(number)
        self._order.append(0)
        self._places.append(_WHITEOUT)

    def __contains__(self, inode: object) -> bool:
        return any(found == inode for found in self)

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Inode]:
        """All of them, ascending."""
        numbers = self._numbers
        rows: Sequence[int] = range(len(numbers))
        if not all(map(lt, numbers, islice(numbers, 1, None))):
            order = self._order
            rows = sorted(rows, key=lambda row: (numbers[row], order[row]))
        for row in rows:
            place = self._places[row]
            if place == _WHITEOUT:
                yield Inode(numbers[row], Kind.WHT, 0o644)
            else:
                yield _inode(marshal.loads(self._read(place - 1)))  # noqa: S302  of our own making

    def close(self) -> None:
        """Give the space back."""
        if self._file is not None:
            self._file.close()

    def _read(self, place: int) -> bytes:
        if self._file is None:
            length = int.from_bytes(self._kept[place : place + 4], "little")
            return bytes(self._kept[place + 4 : place + 4 + length])
        length = int.from_bytes(self._file.read(place, 4), "little")
        return self._file.read(place + 4, length)


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
