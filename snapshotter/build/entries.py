"""The tree that a layer is built from: mutable nodes, their walk order, and the inodes that come of them.

Both sources of a layer (a directory on disk, a tar stream) make the same tree, so that the same files give the same bytes
wherever they came from. One `Node` stands for one inode: names that are hard links of one another lead to the same object.
Nothing here does I/O, and nothing recurses, so depth costs memory only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NewType, Protocol

from snapshotter.build.chunk import ChunkList
from snapshotter.errors import CorruptError
from snapshotter.format.digest import Digest
from snapshotter.format.model import ROOT_INO, DirEntry, FileChunk, Inode, Kind, Xattr

if TYPE_CHECKING:  # its modules take 15 ms, and most builds read no metadata
    from snapshotter.format.rootfs import Rootfs

Stamp = NewType("Stamp", bytes)
"""What stat(2) says of a file that nobody has written to since: inode number, and times in nanoseconds (`stamp`)."""

_STAMP = struct.Struct("<Qqq")


def stamp(ino: int, mtime: int, ctime: int) -> Stamp:
    """A stamp, in 57 bytes; as integers they take 160, of every file of a tree."""
    return Stamp(_STAMP.pack(ino, mtime, ctime))


class Lists(Protocol):
    """Where the chunk lists of many files are, by number, as `ChunkList` packs them."""

    def new(self) -> int:
        """The number of another file."""
        ...

    def put(self, number: int, packed: bytes) -> None:
        """The list of a file that has been cut."""
        ...

    def has(self, number: int) -> bool:
        """Whether the file has been cut."""
        ...

    def get(self, number: int) -> bytes | None:
        """The file's list, None if it has not been cut."""
        ...


class Content:
    """A regular file's bytes: how many, where they can be read until they are cut, and the chunks they were cut into.

    `path` is where a file on disk is and `stamp` by what it is known to be unchanged, `offset` where a file of a tar stream
    stands in the builder's spool. `chunks` is None until the file is cut; an empty file needs no cutting.
    """

    __slots__ = ("_chunks", "_directory", "_lists", "_name", "_number", "offset", "size", "stamp")

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
        self._lists: Lists | None = None
        self._number = 0
        self.chunks = chunks if size or chunks is not None else ()

    def put_away(self, lists: Lists) -> tuple[int, bytes, bytes, Stamp | None, int, int]:
        """What `back` makes an equal one of. From now on both have their chunk list in `lists`, whichever of them is cut."""
        if self._lists is None:
            chunks = self.chunks
            self._lists, self._number = lists, lists.new()
            if chunks is not None:
                self.chunks = chunks
        return self.size, self._directory, self._name, self.stamp, self.offset, self._number

    @classmethod
    def back(
        cls, lists: Lists, size: int, directory: bytes, name: bytes, stamp: Stamp | None, offset: int, number: int
    ) -> Content:
        """One that was `put_away`."""
        content = cls.__new__(cls)
        content.size, content._directory, content._name = size, directory, name
        content.stamp, content.offset = stamp, offset
        content._lists, content._number, content._chunks = lists, number, None
        return content

    @property
    def list_place(self) -> tuple[Lists, int] | None:
        """Where the chunk list of one that was `put_away` is to be put, and by which number: all that cutting it needs."""
        return None if self._lists is None else (self._lists, self._number)

    @property
    def path(self) -> bytes:
        """Made when it is asked for: all the paths of a tree take as much memory as its nodes."""
        return self._directory + b"/" + self._name

    @property
    def chunks(self) -> Sequence[FileChunk] | None:
        """See the class."""
        chunks = self._chunks if self._lists is None else self._lists.get(self._number)
        return ChunkList.unpack(chunks) if isinstance(chunks, bytes) else chunks

    @chunks.setter
    def chunks(self, chunks: Sequence[FileChunk] | None) -> None:
        self._chunks: bytes | Sequence[FileChunk] | None = chunks.packed if isinstance(chunks, ChunkList) else chunks
        if self._lists is not None and chunks is not None:
            self._lists.put(self._number, (chunks if isinstance(chunks, ChunkList) else ChunkList(chunks)).packed)
            self._chunks = None

    @property
    def is_cut(self) -> bool:
        """Whether `chunks` is not None."""
        return self._chunks is not None if self._lists is None else self._lists.has(self._number)


_NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})


class Shelved(Protocol):
    """What a directory lists, of which the leaves are somewhere else."""

    def outline(self) -> Iterator[tuple[bytes, Node | None]]:
        """The names, and what they lead to; None for what is somewhere else."""
        ...

    def children(self) -> dict[bytes, Node]:
        """Everything, with a copy of what is somewhere else: nobody else has that, and nobody sees what is done to it."""
        ...

    def come_back(self, directory: Node) -> dict[bytes, Node]:
        """Everything, for `directory` to have in the place of this."""
        ...


class Node:
    """One inode of the tree; the fields mean what they mean in `format.model.Inode`.

    A directory has entries; nothing else has. A regular file has `content`; nothing else has. `xattrs` are put in the place of
    others, never changed: most nodes share the empty ones. What `is_shared` may have several names.
    """

    __slots__ = (
        "_children",
        "content",
        "device",
        "gid",
        "is_shared",
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
        self.is_shared = False
        self._children: dict[bytes, Node] | Shelved | None = {} if kind is Kind.DIR else None

    def names(self) -> dict[bytes, Node]:
        """The entries of this directory, which the caller knows it is."""
        children = self._children
        if isinstance(children, dict):
            return children
        if children is None:
            raise TypeError(f"{self.kind.name} has no entries")
        self._children = found = children.come_back(self)
        return found

    def put_away(self, shelved: Shelved) -> None:
        """Have `shelved` in the place of the entries, until somebody asks for `names`."""
        self._children = shelved

    def listed(self) -> list[tuple[bytes, Node]]:
        """The entries of this directory, in the order of their names, to be looked at and not to be changed."""
        children = self._children
        if children is None:
            raise TypeError(f"{self.kind.name} has no entries")
        return sorted((children if isinstance(children, dict) else children.children()).items())

    def outline(self) -> list[tuple[bytes, Node | None]]:
        """As `listed`, but None in the place of what is put away."""
        children = self._children
        if children is None:
            raise TypeError(f"{self.kind.name} has no entries")
        return sorted(children.items() if isinstance(children, dict) else children.outline())

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


class Numbering:
    """A tree in walk order, with the number of every inode. Of most of a tree nothing is kept: numbers follow from places.

    The tree must stay as it is: times, owners, contents may change, names may not.
    """

    def __init__(self, root: Node, starts: Mapping[int, int], names: int, links: Mapping[int, int]) -> None:
        """See `number`. `starts`: by identity of a directory, how many names come before its own; `names`: how many there are;
        `links`: the numbers of those that lead to what had a name already, by how many come before them."""
        self._root = root
        self._starts = starts
        self._names = names
        self._links = links

    def __len__(self) -> int:
        """How many inodes there are."""
        return 1 + self._names - len(self._links)

    def __iter__(self) -> Iterator[tuple[int, Node]]:
        """Every inode with its number, ascending."""
        yield ROOT_INO, self._root
        for found in self._visits():
            yield from found

    def entries(self, node: Node) -> Sequence[DirEntry]:
        """The entries of an inode of the tree, in the order of their names; of what is no directory, none."""
        if node.kind is not Kind.DIR:
            return ()
        links = self._links
        names = enumerate(node.outline(), self._starts[id(node)])
        return [DirEntry(links.get(place, _FIRST + place), name) for place, (name, _) in names]

    def contents(self) -> Iterator[Content]:
        """The files' contents, each once, in the order in which they form the data stream."""
        for found in self.contents_by_directory():
            yield from found

    def contents_by_directory(self) -> Iterator[Sequence[Content]]:
        """`contents`, those of each directory together."""
        for found in self._visits():
            contents = [node.content for _, node in found if node.content is not None]
            if contents:
                yield contents

    def _visits(self) -> Iterator[list[tuple[int, Node]]]:
        """For every directory, as they are visited, what has its first name there."""
        links = self._links
        pending = [self._root]
        while pending:
            directory = pending.pop()
            places = enumerate(directory.listed(), self._starts[id(directory)])
            found = [(_FIRST + place, node) for place, (_, node) in places if place not in links]
            yield found
            pending.extend([node for _, node in reversed(found) if node.kind is Kind.DIR])


_FIRST = ROOT_INO + 1
"""The number of the first name."""


def number(root: Node) -> Numbering:
    """Number the inodes of a tree in walk order.

    Directories are visited depth first, a directory before what is in it; when one is visited, all of its entries are
    taken in the order of their names' bytes and numbered at once. The root is 1. A further name of an inode gets the
    inode's number, and the number that it would have got is left out.

    Raises:
        CorruptError: a directory has two parents, so this is no tree.
    """
    known: dict[int, int] = {id(root): ROOT_INO}
    starts: dict[int, int] = {}
    links: dict[int, int] = {}
    place = 0
    pending = [root]
    while pending:
        directory = pending.pop()
        starts[id(directory)] = place
        below = []
        for name, node in directory.outline():
            # What is put away has no other name.
            if node is not None:
                ino = known.setdefault(id(node), _FIRST + place)
                if node.kind is Kind.DIR:
                    if ino != _FIRST + place:
                        raise CorruptError(f"directory {name!r} has more than one parent")
                    below.append(node)
                elif ino != _FIRST + place:
                    links[place] = ino
            place += 1
        pending.extend(reversed(below))
    return Numbering(root, starts, place, links)


def inodes(numbering: Numbering) -> list[Inode]:
    """The inodes of a tree whose files have been cut, ready to be encoded."""
    return list(each_inode(numbering))


def each_inode(numbering: Numbering) -> Iterator[Inode]:
    """`inodes`, one by one."""
    for ino, node in numbering:
        yield inode(ino, node, numbering.entries(node))


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
        [Xattr(key, node.xattrs[key]) for key in sorted(node.xattrs)] if node.xattrs else (),
        node.target,
    )


def _chunks(node: Node) -> Sequence[FileChunk]:
    if node.content is None:
        return ()
    chunks = node.content.chunks
    if chunks is None:
        raise ValueError("an inode was asked for before its file was cut")
    return chunks


def from_rootfs(rootfs: Rootfs) -> Node:
    """The tree that a rootfs metadata message describes (several layers in it: their union).

    Raises:
        CorruptError: the message breaks a rule, or a directory has more than one parent.
    """
    nodes = {found.ino: (found, node_of(found)) for found in rootfs.inodes()}
    if ROOT_INO not in nodes or nodes[ROOT_INO][1].kind is not Kind.DIR:
        raise CorruptError("the metadata has no root directory")
    named = {ROOT_INO}
    for found, node in nodes.values():
        for entry in found.entries:
            if entry.ino not in nodes:
                raise CorruptError(f"directory {found.ino} names inode {entry.ino}, which does not exist")
            child = nodes[entry.ino][1]
            if child.kind is Kind.DIR:
                if entry.ino in named:
                    raise CorruptError(f"directory {entry.ino} has more than one parent")
                named.add(entry.ino)
            node.names()[entry.name] = child
    return nodes[ROOT_INO][1]


def node_of(inode: Inode) -> Node:
    """A node with the attributes, and the content, of `inode`; a directory without its entries."""
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
