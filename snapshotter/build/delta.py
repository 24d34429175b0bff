"""A tree as one more metadata layer over an image: what changed since, under the inode numbers that the image has.

Our layer holds the inodes that are not as the image has them, each directory among them whole, and a whiteout for every
number that is gone. A reader that takes each number from the newest layer that has it, upstream's included, so finds
exactly the new tree: no directory names a whiteout, and no two inodes share a number.

Neither the tree nor the image is kept: of each of its inodes the image's number and a few bytes are, and what changed is put
away (`inodelist`).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from snapshotter.build.entries import Node, inode
from snapshotter.build.inodelist import InodeList
from snapshotter.errors import CorruptError, NotFoundError
from snapshotter.format.model import ROOT_INO, DirEntry, Inode, Kind
from snapshotter.format.rootfs import Rootfs


def delta(root: Node, base: Rootfs, temporary: Path | None = None) -> InodeList:
    """The inodes of the layer that makes `root`, whose files are cut, of the image `base`; none if it is that already.

    A name that the image has keeps its number, whatever is there now. Of several names of one file the first in walk order
    that has a number gives it, and no number is given twice. All others continue behind the image's highest number, in walk
    order. To be closed; what it is put away in is made in `temporary`.

    Raises:
        CorruptError: the image breaks a rule of the format, or a directory of `root` has more than one parent.
        FailedPreconditionError: there is no room for what changed.
    """
    numbers = _Numbers(base)
    # For each name, in walk order, whether its inode has the number that the name has in the image.
    gives = bytearray()
    # What may have several names is in memory as long as the tree is, so its identity says which inode it is. 0: none yet.
    several: dict[int, int] = {id(root): ROOT_INO}
    for name, node, old in _outline(root, base):
        taken = old is not None and not (node is not None and several.get(id(node))) and numbers.take(old)
        gives.append(taken)
        if node is not None:
            if node.kind is Kind.DIR and id(node) in several:
                raise CorruptError(f"directory {name!r} has more than one parent")
            several[id(node)] = old if taken and old is not None else several.get(id(node), 0)
    layer = InodeList(temporary)
    try:
        for new in _numbered(root, base, gives, several, numbers.following):
            if not _same(new, _before(base, new.ino)):
                layer.add(new)
        for number in numbers.gone():
            layer.add_whiteout(number)
    except BaseException:
        layer.close()
        raise
    return layer


class _Numbers:
    """The image's numbers, and which of them the tree has."""

    def __init__(self, base: Rootfs) -> None:
        self._known = array("Q", base.numbers())
        self._taken = bytearray(len(self._known))
        self._strange: set[int] = set()  # what directories name and is not there
        self.following = 1 + base.highest_number()
        """The first number that is free."""
        self.take(ROOT_INO)

    def take(self, number: int) -> bool:
        """Give the number away; False if it is given away already."""
        row = bisect_left(self._known, number)
        if row == len(self._known) or self._known[row] != number:
            is_free = number not in self._strange
            self._strange.add(number)
            return is_free
        is_free = not self._taken[row]
        self._taken[row] = True
        return is_free

    def gone(self) -> Iterator[int]:
        """The numbers that were not given away, ascending."""
        return (number for number, taken in zip(self._known, self._taken, strict=True) if not taken)


def _outline(root: Node, base: Rootfs) -> Iterator[tuple[bytes, Node | None, int | None]]:
    """Every name of the tree in walk order, what it names, if that is in memory, and the number it has in the image."""
    pending: list[tuple[Node, int | None]] = [(root, ROOT_INO)]
    while pending:
        directory, number = pending.pop()
        before = _entries(base, number)
        below: list[tuple[Node, int | None]] = []
        for name, node in directory.outline():
            old = before.get(name)
            yield name, node, old
            if node is not None and node.kind is Kind.DIR:
                below.append((node, old))
        pending.extend(reversed(below))


def _numbered(root: Node, base: Rootfs, gives: bytearray, several: dict[int, int], following: int) -> Iterator[Inode]:
    """The tree's inodes, each once, a directory before what is in it. See `delta`."""
    place = 0
    made: set[int] = set()
    pending: list[tuple[Node, int, int | None]] = [(root, ROOT_INO, ROOT_INO)]
    while pending:
        directory, number, in_image = pending.pop()
        before = _entries(base, in_image)
        entries = []
        leaves = []
        below: list[tuple[Node, int, int | None]] = []
        for name, node in directory.listed():
            old = before.get(name)
            known = several.get(id(node))
            ino = old if old is not None and gives[place] else known
            if not ino:
                ino = following
                following += 1
            place += 1
            entries.append(DirEntry(ino, name))
            if node.kind is Kind.DIR:
                below.append((node, ino, old))
            elif known is None or id(node) not in made:
                leaves.append((ino, node))
                if known is not None:
                    several[id(node)] = ino
                    made.add(id(node))
        pending.extend(reversed(below))
        yield _plain(inode(number, directory, entries))
        for ino, node in leaves:
            yield _plain(inode(ino, node))


def _entries(base: Rootfs, number: int | None) -> dict[bytes, int]:
    """What a directory of the image lists; of something else, nothing."""
    if number is None or base.kind(number) is not Kind.DIR:
        return {}
    return {entry.name: entry.ino for entry in base.inode(number).entries}


def _before(base: Rootfs, number: int) -> Inode | None:
    try:
        return base.inode(number)
    except NotFoundError:
        return None


def _plain(found: Inode) -> Inode:
    """A directory shows all that it has, so that whether it looks below makes no difference."""
    return replace(found, look_below=False) if found.look_below else found


def _same(new: Inode, old: Inode | None) -> bool:
    """Whether a reader sees the same in both."""
    return old is not None and _fields(new) == _fields(old)


def _fields(found: Inode) -> tuple[object, ...]:
    return (
        found.kind,
        found.permissions,
        found.uid,
        found.gid,
        found.mtime,
        found.mtime_nsec,
        found.device,
        found.target,
        list(found.entries),
        list(found.chunks),
        list(found.xattrs),
    )
