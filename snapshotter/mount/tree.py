"""A layer or an image as a read-only file system, free of FUSE: what both engines adapt.

Node ids are the image's inode numbers, so a tree has no state about who looked at what. The metadata may be hostile even
when its digest is right: whatever breaks a rule is a `CorruptError` for the inode that breaks it, and for nothing else. The
rules that concern one inode alone are the codec's; here are those between inodes:

* A directory has one name. A second parent would give cycles, and overlayfs and the kernel's dentry cache two paths for
  one directory.
* No name leads to the root, or to inode 0 (FUSE's "no such name"), or to an inode that is not there.

As a layer for overlayfs (`as_layer`) a whiteout is a character device 0/0 and an opaque directory has
``trusted.overlay.opaque`` = ``y``, or ``user.overlay.opaque`` for overlays of a user namespace (Linux,
filesystems/overlayfs.rst, "whiteouts and opaque directories"); otherwise names that lead to whiteouts are not shown.
"""

from __future__ import annotations

import itertools
import os
import stat
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import NamedTuple

from snapshotter import userns
from snapshotter.chunkstore.base import ChunkRef
from snapshotter.errors import CorruptError, NotFoundError
from snapshotter.format.digest import Digest
from snapshotter.format.filechunks import FileChunks
from snapshotter.format.model import ROOT_INO, DirEntry, Inode, Kind
from snapshotter.format.rootfs import Rootfs
from snapshotter.mount.cache import WeightedCache

DIRECTORY_SIZE = 4096
"""``st_size`` of every directory, as ext4 shows for a small one: the format knows none, and 0 makes some tools skip it."""

CACHE_WEIGHT = 1 << 15
"""Inodes and directory entries that are kept decoded, for all trees that share a cache: about 6 MB at most."""

_ENDS_WEIGHT = 16
"""Ends of chunks that take the memory of one decoded entry."""

_DEPTH_MAX = 4096
"""Directories above one another beyond which a path is taken for a cycle: no path in Linux is longer."""

_LINKS_MAX = 40
"""Symlinks on the way to a file beyond which it is not looked for: as many as Linux follows (MAXSYMLINKS)."""

_TYPES = {
    Kind.FIFO: stat.S_IFIFO,
    Kind.CHR: stat.S_IFCHR,
    Kind.DIR: stat.S_IFDIR,
    Kind.BLK: stat.S_IFBLK,
    Kind.FILE: stat.S_IFREG,
    Kind.LNK: stat.S_IFLNK,
    Kind.SOCK: stat.S_IFSOCK,
    Kind.WHT: stat.S_IFCHR,
}
_entry_name = attrgetter("name")


class Attributes(NamedTuple):
    """What lstat(2) shows. `mode` has the type bits, `blocks` counts 512 bytes, all times are `mtime` and `mtime_nsec`."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    blocks: int
    rdev: int
    mtime: int
    mtime_nsec: int


class Piece(NamedTuple):
    """`length` bytes from `offset` on of the raw bytes of a chunk, of which the file has bytes up to `known`."""

    chunk: ChunkRef
    offset: int
    length: int
    known: int


class TreeStats(NamedTuple):
    """The size of the whole tree: blocks of `BLOCK_SIZE` that its files take, and inodes."""

    blocks: int
    inodes: int


NodeCache = WeightedCache[tuple[int, int], Inode | Sequence[int]]
_tree_numbers = itertools.count()


def new_cache(weight: int = CACHE_WEIGHT) -> NodeCache:
    """A cache of decoded inodes for the trees of one process."""
    return WeightedCache(weight)


class Tree:
    """The file system over one `Rootfs`. Safe to use from several threads; all that it keeps is bounded.

    Every method that takes an inode number raises `NotFoundError` where there is no such inode and `CorruptError` where it
    breaks a rule of the format.
    """

    def __init__(
        self,
        rootfs: Rootfs,
        *,
        as_layer: bool = False,
        overlay_prefix: bytes = userns.TRUSTED_OVERLAY,
        cache: NodeCache | None = None,
    ) -> None:
        """`as_layer`: show whiteouts and opaque directories to overlayfs, which takes orders by attributes whose names begin
        with `overlay_prefix`: they are ours to give, not the image's. `cache`: shared with other trees."""
        self._rootfs = rootfs
        self._as_layer = as_layer
        self._overlay_prefix = overlay_prefix
        self._hides = not as_layer and rootfs.layer_count == 1
        self._cache = cache if cache is not None else new_cache()
        self._number = next(_tree_numbers)

    def prepare(self) -> None:
        """Look at all inodes, so that no request has to wait for it: about 3 µs an inode.

        Raises:
            CorruptError: see `Rootfs.survey`.
        """
        self._rootfs.survey()

    def close(self) -> None:
        """Let go of the metadata, and of what is decoded of it. Using the tree afterwards is a programming error."""
        self._cache.drop(lambda key: key[0] == self._number)
        self._rootfs.close()

    def lookup(self, ino: int, name: bytes) -> int | None:
        """The inode that `name` has in directory `ino`, None if there is no such name.

        Raises:
            CorruptError: the name leads to something that no name may lead to.
        """
        entries = self.entries(ino)
        at = bisect_left(entries, name, key=_entry_name)
        if at == len(entries) or entries[at].name != name:
            return None
        return self._child(entries[at].ino)

    def entries(self, ino: int) -> Sequence[DirEntry]:
        """The names in directory `ino`, sorted by their bytes, without ``.`` and ``..``."""
        inode = self._inode(ino)
        if inode.kind is not Kind.DIR:
            raise CorruptError(f"inode {ino} is no directory")
        return inode.entries

    def attributes(self, ino: int) -> Attributes:
        """What lstat(2) shows of inode `ino`."""
        kind, permissions, uid, gid, mtime, nsec, size, device = self._rootfs.stat(ino)
        survey = self._rootfs.survey()
        nlink = survey.names.get(ino, 1)
        blocks = rdev = 0
        if kind is Kind.FILE:
            blocks = (size + 511) // 512
        elif kind is Kind.DIR:
            if nlink > 1 and ino != ROOT_INO:
                raise CorruptError(f"inode {ino} is a directory with {nlink} names")
            nlink = 2 + survey.subdirectories.get(ino, 0)
            size, blocks = DIRECTORY_SIZE, DIRECTORY_SIZE // 512
        elif kind is Kind.CHR or kind is Kind.BLK:
            rdev = os.makedev(*device)
        else:
            self._check_kind(ino, kind)
        return Attributes(ino, _TYPES[kind] | permissions, nlink, uid, gid, size, blocks, rdev, mtime, nsec)

    def entry_attributes(self, entry: DirEntry) -> Attributes:
        """The attributes of what a directory's entry leads to, with the checks of `lookup`."""
        return self.attributes(self._child(entry.ino))

    def readlink(self, ino: int) -> bytes:
        """The target of symlink `ino`."""
        target = self._inode(ino).target
        if target is None:
            raise CorruptError(f"inode {ino} is no symlink")
        return target

    def xattrs(self, ino: int) -> Mapping[bytes, bytes]:
        """The extended attributes of inode `ino`, by full name; of an inode that does not exist, none."""
        if not self.may_have_xattrs(ino):
            return {}
        inode = self._inode(ino)
        values = {xattr.key: xattr.value for xattr in inode.xattrs}
        if len(values) != len(inode.xattrs):
            raise CorruptError(f"inode {ino} has two extended attributes of the same name")
        if not self._as_layer:
            return values
        values = {key: value for key, value in values.items() if not key.startswith(self._overlay_prefix)}
        if _is_opaque(inode):
            values[self._overlay_prefix + b"opaque"] = b"y"
        return values

    def may_have_xattrs(self, ino: int) -> bool:
        """False where `xattrs` is empty, known without reading the inode: nearly always."""
        survey = self._rootfs.survey()
        return ino in survey.attributed or (self._as_layer and ino in survey.opaque)

    @property
    def has_acls(self) -> bool:
        """Whether there may be POSIX ACLs for the kernel to enforce: whether the image has any extended attribute."""
        return self._rootfs.has_xattrs()

    def statfs(self) -> TreeStats:
        """How large the tree is. Found once, by a walk over all inodes."""
        survey = self._rootfs.survey()
        return TreeStats(survey.blocks, survey.inodes)

    def plan(self, ino: int, offset: int, length: int) -> list[Piece]:
        """Where the bytes of file `ino` from `offset` on lie: pieces in order, `length` bytes or up to the file's end."""
        chunks = self._rootfs.chunks(ino)
        if isinstance(chunks, tuple):
            digest, start, size, compressed = chunks
            if not length or offset >= size:
                return []
            return [Piece(ChunkRef(digest, compressed), start + offset, min(length, size - offset), start + size)]
        if chunks is None:
            self._inode(ino)  # which may say what is wrong with it
            raise CorruptError(f"inode {ino} is no regular file")
        ends = self._ends(ino, chunks)
        first = bisect_right(ends, offset)
        end = offset + length
        last = min(bisect_left(ends, end, first) + 1, len(ends))
        if first >= last or not length:
            return []
        skipped = offset - (ends[first - 1] if first else 0)
        pieces = []
        for digest, start, size, compressed in chunks.between(first, last):
            taken = min(size - skipped, end - offset)
            pieces.append(Piece(ChunkRef(digest, compressed), start + skipped, taken, start + size))
            offset += taken
            skipped = 0
        return pieces

    def verity(self, digest: Digest) -> bytes | None:
        """See `Rootfs.verity`."""
        return self._rootfs.verity(digest)

    def next_file(self, ino: int, within: int) -> int | None:
        """The regular file that follows inode `ino` in the order of the numbers, which is that of a walk, if one is `within` so
        many numbers. Never raises."""
        return next((number for number in range(ino + 1, ino + 1 + within) if self.is_file(number)), None)

    def is_file(self, ino: int) -> bool:
        """Whether inode `ino` is a regular file. Never raises."""
        try:
            return self._rootfs.kind(ino) is Kind.FILE
        except (NotFoundError, CorruptError):
            return False

    def is_directory(self, ino: int) -> bool:
        """Whether inode `ino` is a directory. Never raises."""
        try:
            return self._rootfs.kind(ino) is Kind.DIR
        except (NotFoundError, CorruptError):
            return False

    def first_entries(self) -> Iterator[tuple[int, int]]:
        """See `Rootfs.first_entries`."""
        return self._rootfs.first_entries()

    def resolve(self, path: bytes) -> int | None:
        """The inode at `path`, taken from the root; symlinks are followed within the tree. None where there is none."""
        names = path.split(b"/")[::-1]
        above = [ROOT_INO]
        links = 0
        while names:
            name = names.pop()
            if name == b"..":
                del above[max(1, len(above) - 1) :]
            if name in (b"", b".", b".."):
                continue
            try:
                ino = self.lookup(above[-1], name)
                if ino is None:
                    return None
                if self._rootfs.kind(ino) is not Kind.LNK:
                    above.append(ino)
                    continue
                target = self.readlink(ino)
            except (CorruptError, NotFoundError):
                return None
            links += 1
            if links > _LINKS_MAX:
                return None
            if target.startswith(b"/"):
                del above[1:]
            names += target.split(b"/")[::-1]
        return above[-1]

    def path(self, ino: int) -> bytes:
        """A path from the root to inode `ino`, for messages: the first one, of a hard link.

        Never raises: what has no path is shown by its number.
        """
        try:
            parent_of = self._rootfs.survey().parents.owner
        except CorruptError:
            return b"inode %d" % ino
        parts: list[bytes] = []
        child = ino
        while child != ROOT_INO:
            parent = parent_of(child)
            name = None if parent is None else self._name_in(parent, child)
            if parent is None or name is None or len(parts) == _DEPTH_MAX:
                return b"inode %d" % ino
            parts.append(name)
            child = parent
        return b"/" + b"/".join(reversed(parts))

    def _ends(self, ino: int, chunks: FileChunks) -> Sequence[int]:
        key = (self._number, -ino)  # beside the inode, which is seldom asked for
        ends = self._cache.get(key)
        if ends is None or isinstance(ends, Inode):
            ends = chunks.ends()
            self._cache.put(key, ends, 1 + len(ends) // _ENDS_WEIGHT)
        return ends

    def _inode(self, ino: int) -> Inode:
        key = (self._number, ino)
        inode = self._cache.get(key)
        if not isinstance(inode, Inode):
            inode = self._decode(ino)
            self._cache.put(key, inode, 1 + len(inode.entries) + len(inode.chunks))
        return inode

    def _decode(self, ino: int) -> Inode:
        inode = self._rootfs.inode(ino)
        self._check_kind(ino, inode.kind)
        if inode.kind is Kind.DIR:
            if ino != ROOT_INO and self._rootfs.name_count(ino) > 1:
                raise CorruptError(f"inode {ino} is a directory with {self._rootfs.name_count(ino)} names")
            if self._hides:
                visible = [entry for entry in inode.entries if not self._is_whiteout(entry.ino)]
                return replace(inode, entries=visible)
        return inode

    def _check_kind(self, ino: int, kind: Kind) -> None:
        if kind is Kind.UNKNOWN:
            raise CorruptError(f"inode {ino} has no type")
        if kind is Kind.WHT and not self._as_layer:
            raise NotFoundError(f"inode {ino} is a whiteout")

    def _child(self, ino: int) -> int:
        if ino in (0, ROOT_INO):
            raise CorruptError(f"a directory entry leads to inode {ino}")
        return ino

    def _is_whiteout(self, ino: int) -> bool:
        try:
            return self._rootfs.kind(ino) is Kind.WHT
        except (NotFoundError, CorruptError):
            return False

    def _name_in(self, parent: int, child: int) -> bytes | None:
        try:
            return next((entry.name for entry in self.entries(parent) if entry.ino == child), None)
        except (CorruptError, NotFoundError):
            return None


def _is_opaque(inode: Inode) -> bool:
    return inode.kind is Kind.DIR and not inode.look_below and inode.ino != ROOT_INO
