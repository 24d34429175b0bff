"""The tree that a layer is built from: mutable nodes, their walk order, and the inodes that come of them.

Both sources of a layer (a directory on disk, a tar stream) make the same tree, so that the same files give the same bytes
wherever they came from. One `Node` stands for one inode: names that are hard links of one another lead to the same object.
Nothing here does I/O, and nothing recurses, so depth costs memory only.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import NewType

from snapshotter.build.chunk import ChunkList
from snapshotter.errors import CorruptError
from snapshotter.format.digest import Digest
from snapshotter.format.model import ROOT_INO, DirEntry, FileChunk, Inode, Kind, Xattr
from snapshotter.format.rootfs import Rootfs

Stamp = NewType("Stamp", bytes)
"""What stat(2) says of a file that nobody has written to since: inode number, and times in nanoseconds (`stamp`)."""

_STAMP = struct.Struct("<Qqq")


def stamp(ino: int, mtime: int, ctime: int) -> Stamp:
    """A stamp, in 57 bytes; as integers they take 160, of every file of a tree."""
    return Stamp(_STAMP.pack(ino, mtime, ctime))


class Content:
    """A regular file's bytes: how many, where they can be read until they are cut, and the chunks they were cut into.

    `path` is where a file on disk is and `stamp` by what it is known to be unchanged, `offset` where a file of a tar stream
    stands in the builder's spool. `chunks` is None until the file is cut; an empty file needs no cutting.
    """

    __slots__ = ("_chunks", "_directory", "_name", "offset", "size", "stamp")

    def __init__(
        self,
        size: int,
        *,
        directory: bytes = b"",
        name: bytes = b"",
        stamp: Stamp | None = None,
        chunks: Sequence[FileChunk] | None = None,
    ) -> None:
        """The file `name` of `directory`, if it is one on disk."""
        self.size = size
        self._directory = directory
        self._name = name
        self.stamp = stamp
        self.offset = 0
        self.chunks = chunks if size or chunks is not None else ()

    @property
    def path(self) -> bytes:
        """Made when it is asked for: all the paths of a tree take as much memory as its nodes."""
        return self._directory + b"/" + self._name

    @property
    def chunks(self) -> Sequence[FileChunk] | None:
        """See the class."""
        chunks = self._chunks
        return ChunkList.unpack(chunks) if isinstance(chunks, bytes) else chunks

    @chunks.setter
    def chunks(self, chunks: Sequence[FileChunk] | None) -> None:
        self._chunks: bytes | Sequence[FileChunk] | None = chunks.packed if isinstance(chunks, ChunkList) else chunks


_NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})


class Node:
    """One inode of the tree; the fields mean what they mean in `format.model.Inode`.

    A directory has `children`, by name; nothing else has. A regular file has `content`; nothing else has. `xattrs` are put in
    the place of others, never changed: most nodes share the empty ones.
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
        xattrs: Mapping[bytes, bytes] | None = None,
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
        self.xattrs: Mapping[bytes, bytes] = xattrs or _NO_XATTRS
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
            xattrs=self.xattrs,
        )
        node.look_below = self.look_below
        return node


@dataclass(frozen=True, slots=True)
class Numbering:
    """A tree in walk order: every inode once, with its number, ascending; in columns, since a tree can have millions."""

    numbers: Sequence[int]
    nodes: Sequence[Node]
    """As many as `numbers`."""
    named: Sequence[int]
    """The numbers that names lead to, those of one directory after those of the other, in the order of the names."""
    places: Mapping[int, int]
    """Where in `named` those of a directory begin, by the directory's place in `nodes`."""
    directories: Sequence[int]
    """For every directory, as they are visited, the place in `nodes` of the first one that has its first name there."""

    def entries(self, place: int) -> Sequence[DirEntry]:
        """The entries of the node in `place`, in the order of their names; of what is no directory, none."""
        children = self.nodes[place].children
        if children is None:
            return ()
        start = self.places[place]
        return list(map(DirEntry, self.named[start : start + len(children)], sorted(children)))

    def contents(self) -> Iterator[Content]:
        """The files' contents, each once, in the order in which they form the data stream."""
        for node in self.nodes:
            if node.content is not None:
                yield node.content

    def contents_by_directory(self) -> Iterator[Sequence[Content]]:
        """`contents`, those of each directory together."""
        for start, end in pairwise([*self.directories, len(self.nodes)]):
            found = [node.content for node in self.nodes[start:end] if node.content is not None]
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
    known: dict[int, int] = {id(root): ROOT_INO}
    numbers, nodes = array("Q", (ROOT_INO,)), [root]
    named = array("Q")
    places: dict[int, int] = {}
    following = ROOT_INO + 1
    starts = array("Q")
    pending = [0]
    while pending:
        place = pending.pop()
        starts.append(len(nodes))
        places[place] = len(named)
        below = []
        for name, node in sorted(nodes[place].names().items()):
            ino = known.setdefault(id(node), following)
            if ino == following:
                if node.children is not None:
                    below.append(len(nodes))
                numbers.append(ino)
                nodes.append(node)
            elif node.children is not None:
                raise CorruptError(f"directory {name!r} has more than one parent")
            named.append(ino)
            following += 1
        pending.extend(reversed(below))
    return Numbering(numbers, nodes, named, places, starts)


def inodes(numbering: Numbering) -> list[Inode]:
    """The inodes of a tree whose files have been cut, ready to be encoded."""
    return list(each_inode(numbering))


def each_inode(numbering: Numbering) -> Iterator[Inode]:
    """`inodes`, one by one."""
    for place, (ino, node) in enumerate(zip(numbering.numbers, numbering.nodes, strict=True)):
        yield inode(ino, node, numbering.entries(place))


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
