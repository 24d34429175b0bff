"""A tree as one more metadata layer over an image: what changed since, under the inode numbers that the image has.

Our layer holds the inodes that are not as the image has them, each directory among them whole, and a whiteout for every
number that is gone. A reader that takes each number from the newest layer that has it, upstream's included, so finds
exactly the new tree: no directory names a whiteout, and no two inodes share a number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from snapshotter.build.entries import Node, inode
from snapshotter.errors import CorruptError
from snapshotter.format.model import ROOT_INO, DirEntry, Inode, Kind
from snapshotter.format.rootfs import Rootfs


def delta(root: Node, base: Rootfs) -> list[Inode]:
    """The inodes of the layer that makes `root`, whose files are cut, of the image `base`; none if it is that already.

    A name that the image has keeps its number, whatever is there now. Of several names of one file the first in walk order
    that has a number gives it, and no number is given twice. All others continue behind the image's highest number, in walk
    order.

    Raises:
        CorruptError: the image breaks a rule of the format, or a directory of `root` has more than one parent.
    """
    names = list(_names(root, base))
    numbers: dict[int, int] = {id(root): ROOT_INO}
    taken = {ROOT_INO}
    for _, _, node, old in names:
        if old is not None and old not in taken and id(node) not in numbers:
            numbers[id(node)] = old
            taken.add(old)
    following = 1 + max(layer[-1].ino for layer in base.stored() if layer)
    nodes: dict[int, Node] = {ROOT_INO: root}
    entries: dict[int, list[DirEntry]] = {id(root): []}
    for directory, name, node, _ in names:
        if id(node) not in numbers:
            numbers[id(node)] = following
            following += 1
        number = numbers[id(node)]
        nodes[number] = node
        entries[id(directory)].append(DirEntry(number, name))
        if node.kind is Kind.DIR:
            entries[id(node)] = []
    known = {found.ino: found for found in base.inodes()}
    changed = [
        new
        for number, node in nodes.items()
        if not _same(new := replace(inode(number, node, entries.get(id(node), ())), look_below=False), known.get(number))
    ]
    gone = [Inode(number, Kind.WHT, 0o644) for number in known if number not in nodes]
    return sorted([*changed, *gone], key=lambda found: found.ino)


def _names(root: Node, base: Rootfs) -> Iterator[tuple[Node, bytes, Node, int | None]]:
    """Every name of the tree in walk order: its directory, itself, what it names, and the number it has in the image."""
    pending: list[tuple[Node, int | None]] = [(root, ROOT_INO)]
    seen = {id(root)}
    while pending:
        directory, number = pending.pop()
        before: dict[bytes, int] = {}
        if number is not None and base.kind(number) is Kind.DIR:
            before = {entry.name: entry.ino for entry in base.inode(number).entries}
        below: list[tuple[Node, int | None]] = []
        for name, node in sorted(directory.names().items()):
            old = before.get(name)
            yield directory, name, node, old
            if node.kind is Kind.DIR:
                if id(node) in seen:
                    raise CorruptError(f"directory {name!r} has more than one parent")
                seen.add(id(node))
                below.append((node, old))
        pending.extend(reversed(below))


def _same(new: Inode, old: Inode | None) -> bool:
    """Whether a reader sees the same in both."""
    return old is not None and _plain(new) == _plain(old)


def _plain(found: Inode) -> Inode:
    return replace(
        found, look_below=False, entries=tuple(found.entries), chunks=tuple(found.chunks), xattrs=tuple(found.xattrs)
    )
