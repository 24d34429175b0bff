"""Several layers as one tree, as overlayfs shows them: for mounting or extracting an image as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from snapshotter.build.content import distinct
from snapshotter.build.entries import Node, from_rootfs, inodes, node_of, number
from snapshotter.build.marked import MarkedInodes
from snapshotter.build.shelf import Shelf
from snapshotter.errors import CorruptError, NotFoundError
from snapshotter.format.digest import Digest
from snapshotter.format.model import ROOT_INO, ChunkVerity, FileChunk, Inode, Kind, RootfsContent
from snapshotter.format.rootfs import Rootfs


def flatten(layers: Sequence[Rootfs]) -> RootfsContent:
    """The union of `layers` (the lowest first) as the content of one message: no whiteouts, nothing opaque.

    Raises:
        CorruptError: a layer breaks a rule of the format.
    """
    tree = Node(Kind.DIR)
    verity: dict[Digest, bytes] = {}
    for layer in layers:
        upper = from_rootfs(layer)
        merge(upper, tree)
        tree = upper
        verity.update((entry.digest, entry.verity) for entry in layer.verities())
    settle(tree)
    numbering = number(tree)
    known = [ChunkVerity(digest, verity[digest]) for digest in sorted(distinct(numbering)) if digest in verity]
    return RootfsContent((inodes(numbering),), known)


def checked_inodes(rootfs: Rootfs) -> Iterator[Inode]:
    """The inodes of `rootfs`, and whether its directories are a tree: who looks at them one by one would not notice.

    Raises:
        CorruptError: they are not, name what does not exist, or break another rule of the format.
    """
    named = MarkedInodes(rootfs)
    for found in rootfs.inodes():
        for entry in found.entries:
            try:
                is_directory = rootfs.kind(entry.ino) is Kind.DIR
            except NotFoundError:
                raise CorruptError(f"directory {found.ino} names inode {entry.ino}, which does not exist") from None
            if is_directory and (entry.ino == ROOT_INO or not named.add(entry.ino)):
                raise CorruptError(f"directory {entry.ino} has more than one parent")
        yield found


def alone(rootfs: Rootfs, rename: Callable[[Sequence[FileChunk]], Sequence[FileChunk]], shelf: Shelf) -> Node:
    """The tree of `rootfs`, whose directories are one (`checked_inodes`), with nothing below it: no whiteouts, nothing opaque.

    `rename` gives the chunks that a file has now. What is not looked at is put on the `shelf`.
    """
    root = _alone(rootfs.inode(ROOT_INO), rename)
    several: dict[int, Node] = {}
    pending = [(root, ROOT_INO)]
    while pending:
        directory, ino = pending.pop()
        below = []
        for entry in rootfs.inode(ino).entries:
            node = several.get(entry.ino)
            if node is None:
                found = rootfs.inode(entry.ino)
                if found.kind is Kind.WHT:
                    continue
                node = _alone(found, rename)
                if node.kind is Kind.DIR:
                    below.append((node, entry.ino))
                elif rootfs.name_count(entry.ino) > 1:
                    node.is_shared = True
                    several[entry.ino] = node
            directory.names()[entry.name] = node
            shelf.added(directory)
        pending.extend(reversed(below))
    shelf.settle()
    return root


def _alone(inode: Inode, rename: Callable[[Sequence[FileChunk]], Sequence[FileChunk]]) -> Node:
    node = node_of(inode)
    node.look_below = True
    if node.content is not None:
        node.content.chunks = rename(inode.chunks)
    return node


def merge(upper: Node, lower: Node) -> None:
    """Let `lower`, the union of all layers below, show through the directory `upper` where overlayfs would."""
    pending = [(upper, lower)]
    while pending:
        above, below = pending.pop()
        names = above.names()
        for name, node in below.names().items():
            covering = names.get(name)
            if covering is None:
                names[name] = node
            elif covering.kind is Kind.DIR and node.kind is Kind.DIR and covering.look_below:
                pending.append((covering, node))


def settle(root: Node) -> None:
    """Make a tree one with nothing below it: whiteouts go, and no directory is opaque."""
    pending = [root]
    while pending:
        directory = pending.pop()
        directory.look_below = True
        names = directory.names()
        for name in [name for name, node in names.items() if node.kind is Kind.WHT]:
            del names[name]
        pending.extend(node for node in names.values() if node.kind is Kind.DIR)
