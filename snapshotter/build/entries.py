"""The tree that a layer is built from: mutable nodes, their walk order, and the inodes that come of them.

Both sources of a layer (a directory on disk, a tar stream) make the same tree, so that the same files give the same bytes
wherever they came from. One `Node` stands for one inode: names that are hard links of one another lead to the same object.
Nothing here does I/O, and nothing recurses, so depth costs memory only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from snapshotter.build.chunk import ChunkList
from snapshotter.errors import CorruptError
from snapshotter.format.digest import Digest
from snapshotter.format.model import ROOT_INO, DirEntry, FileChunk, Inode, Kind, Xattr
from snapshotter.format.rootfs import Rootfs


class Stamp(NamedTuple):
    """What stat(2) says of a file that nobody has written to since: inode number, and times in nanoseconds."""

    ino: int
    mtime: int
    ctime: int


class Content:
    """A regular file's bytes: how many, where they can be read until they are cut, and the chunks they were cut into.

    `path` is where a file on disk is and `stamp` by what it is known to be unchanged, `offset` where a file of a tar stream
    stands in the builder's spool. `chunks` is None until the file is cut; an empty file needs no cutting.
    """

    __slots__ = ("chunks", "offset", "path", "size", "stamp")

    def __init__(
        self, size: int, *, path: bytes = b"", stamp: Stamp | None = None, chunks: Sequence[FileChunk] | None = None
    ) -> None:
        self.size = size
        self.path = path
        self.stamp = stamp
        self.offset = 0
        self.chunks = chunks if size or chunks is not None else ()


class Node:
    """One inode of the tree; the fields mean what they mean in `format.model.Inode`.

    A directory has `children`, by name; nothing else has. A regular file has `content`; nothing else has.
    """

    __slots__ = (
        "children",
        "content",
        "device",
        "gid",
        "kind",
        "look_below",
        "mtime",
        "mtime_nsec",
        "permissions",
        "target",
        "uid",
        "xattrs",
    )

    def __init__(
        self,
        kind: Kind,
        permissions: int = 0o755,
        uid: int = 0,
        gid: int = 0,
        mtime: int = 0,
        mtime_nsec: int = 0,
        *,
        device: tuple[int, int] = (0, 0),
        target: bytes | None = None,
        content: Content | None = None,
        xattrs: dict[bytes, bytes] | None = None,
    ) -> None:
        self.kind = kind
        self.permissions = permissions
        self.uid = uid
        self.gid = gid
        self.mtime = mtime
        self.mtime_nsec = mtime_nsec
        self.device = device
        self.target = target
        self.content = content
        self.xattrs: dict[bytes, bytes] = {} if xattrs is None else xattrs
        self.look_below = True
        self.children: dict[bytes, Node] | None = {} if kind is Kind.DIR else None

    def names(self) -> dict[bytes, Node]:
        """The entries of this directory, which the caller knows it is."""
        if self.children is None:
            raise TypeError(f"{self.kind.name} has no entries")
        return self.children

    def copy(self) -> Node:
        """A new inode with the same attributes and content, and no children."""
        node = Node(
            self.kind,
            self.permissions,
            self.uid,
            self.gid,
            self.mtime,
            self.mtime_nsec,
            device=self.device,
            target=self.target,
            content=self.content,
            xattrs=dict(self.xattrs),
        )
        node.look_below = self.look_below
        return node


@dataclass(frozen=True, slots=True)
class Numbering:
    """A tree in walk order: every inode once, with its number, ascending; and for every directory its entries in name order."""

    inodes: Sequence[tuple[int, Node]]
    entries: Sequence[Sequence[DirEntry]]
    """As many as `inodes`; empty for what is not a directory."""
    directories: Sequence[int]
    """For every directory, as they are visited, the place in `inodes` of the first one that has its first name there."""

    def contents(self) -> Iterator[Content]:
        """The files' contents, each once, in the order in which they form the data stream."""
        for _, node in self.inodes:
            if node.content is not None:
                yield node.content

    def contents_by_directory(self) -> Iterator[Sequence[Content]]:
        """`contents`, those of each directory together."""
        for start, end in pairwise([*self.directories, len(self.inodes)]):
            found = [node.content for _, node in self.inodes[start:end] if node.content is not None]
            if found:
                yield found


def number(root: Node) -> Numbering:
    """Number the inodes of a tree in walk order.

    Directories are visited depth first, a directory before what is in it; when one is visited, all of its entries are
    taken in the order of their names' bytes and numbered at once. The root is 1. A further name of an inode gets the
    inode's number, and the number that it would have got is left out.

    Raises:
        CorruptError: a directory has two parents, so this is no tree.
    """
    numbers: dict[int, int] = {id(root): ROOT_INO}
    order: list[tuple[int, Node]] = [(ROOT_INO, root)]
    entries: dict[int, Sequence[DirEntry]] = {}
    following = ROOT_INO + 1
    starts = []
    pending = [root]
    while pending:
        directory = pending.pop()
        starts.append(len(order))
        found = []
        below = []
        for name, node in sorted(directory.names().items()):
            ino = numbers.setdefault(id(node), following)
            if ino == following:
                order.append((ino, node))
                if node.children is not None:
                    below.append(node)
            elif node.children is not None:
                raise CorruptError(f"directory {name!r} has more than one parent")
            found.append(DirEntry(ino, name))
            following += 1
        entries[id(directory)] = found
        pending.extend(reversed(below))
    return Numbering(order, [entries.get(id(node), ()) for _, node in order], starts)


def inodes(numbering: Numbering) -> list[Inode]:
    """The inodes of a tree whose files have been cut, ready to be encoded."""
    return list(each_inode(numbering))


def each_inode(numbering: Numbering) -> Iterator[Inode]:
    """`inodes`, one by one."""
    for (ino, node), found in zip(numbering.inodes, numbering.entries, strict=True):
        yield inode(ino, node, found)


def inode(ino: int, node: Node, entries: Sequence[DirEntry] = ()) -> Inode:
    """The inode numbered `ino` that `node`, whose file has been cut, stands for; a directory with `entries`."""
    return Inode(
        ino,
        node.kind,
        node.permissions,
        node.uid,
        node.gid,
        node.mtime,
        node.mtime_nsec,
        node.device,
        entries,
        node.look_below if node.kind is Kind.DIR else False,
        _chunks(node),
        [Xattr(key, node.xattrs[key]) for key in sorted(node.xattrs)],
        node.target,
    )


def _chunks(node: Node) -> Sequence[FileChunk]:
    if node.content is None:
        return ()
    if node.content.chunks is None:
        raise ValueError("an inode was asked for before its file was cut")
    return node.content.chunks


def from_rootfs(rootfs: Rootfs) -> Node:
    """The tree that a rootfs metadata message describes (several layers in it: their union).

    Raises:
        CorruptError: the message breaks a rule, or a directory has more than one parent.
    """
    nodes = {found.ino: (found, _node(found)) for found in rootfs.inodes()}
    if ROOT_INO not in nodes or nodes[ROOT_INO][1].kind is not Kind.DIR:
        raise CorruptError("the metadata has no root directory")
    named = {ROOT_INO}
    for found, node in nodes.values():
        for entry in found.entries:
            if entry.ino not in nodes:
                raise CorruptError(f"directory {found.ino} names inode {entry.ino}, which does not exist")
            child = nodes[entry.ino][1]
            if child.children is not None:
                if entry.ino in named:
                    raise CorruptError(f"directory {entry.ino} has more than one parent")
                named.add(entry.ino)
            node.names()[entry.name] = child
    return nodes[ROOT_INO][1]


def _node(inode: Inode) -> Node:
    node = Node(
        inode.kind,
        inode.permissions,
        inode.uid,
        inode.gid,
        inode.mtime,
        inode.mtime_nsec,
        device=inode.device,
        target=inode.target,
        content=Content(inode.size, chunks=inode.chunks) if inode.kind is Kind.FILE else None,
        xattrs={xattr.key: xattr.value for xattr in inode.xattrs},
    )
    node.look_below = inode.look_below
    return node


def chunk_order(numbering: Numbering) -> Iterator[Digest]:
    """The name of every chunk reference of the tree in walk order, repeats included."""
    for content in numbering.contents():
        chunks = content.chunks
        if isinstance(chunks, ChunkList):
            yield from chunks.digests()
        elif chunks:
            yield from [chunk.digest for chunk in chunks]
