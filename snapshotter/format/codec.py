"""Between Cap'n Proto messages and the values of `model`: what schema/puzzlefs.capnp says, in code.

Rootfs metadata is read by hand (`reader`), in place: nothing is parsed before it is asked for, and every FUSE request that
is not in a cache comes here; pycapnp takes several times as long (docs/decisions/metadata-reader.md). What is read may be
hostile, so every value is checked as it becomes a model value, and a broken rule is a `CorruptError`. `writer` writes.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from snapshotter.errors import CorruptError
from snapshotter.format import filechunks
from snapshotter.format.digest import Digest
from snapshotter.format.filechunks import FILE_MAX, Chunk, FileChunks
from snapshotter.format.folded import FoldedReader, Unfolded
from snapshotter.format.model import (
    NAME_MAX,
    ChunkVerity,
    DirEntry,
    FileChunk,
    Inode,
    Kind,
    Xattr,
)
from snapshotter.format.reader import MessageReader, Shape, StructList
from snapshotter.format.writer import MANIFEST_VERSION

LAYERS_MAX = 1024
"""Most metadata layers in one message."""
SYMLINK_MAX = 4095
"""Longest symlink target in bytes (PATH_MAX less its final NUL, linux/limits.h)."""
XATTR_KEY_MAX = 255
"""XATTR_NAME_MAX of linux/limits.h."""
XATTR_VALUE_MAX = 64 << 10
"""XATTR_SIZE_MAX of linux/limits.h."""
MAJOR_MAX = (1 << 12) - 1
MINOR_MAX = (1 << 20) - 1

_STRIDE = 4096
"""After so many inodes, a megabyte of the message, the pages of a map are given back."""
_NAME_SHOWN = 300
"""Bytes of a name that are read even if it is too long, for the message."""
_NO_NAMES = (b".", b"..")
_NO_DEVICE = (0, 0)
_KINDS = tuple(Kind)

# schema/puzzlefs.capnp, one shape a struct: its data section in the order of the bytes, and its pointers.
_ROOTFS = Shape("Q", 2)  # manifestVersion; metadatas, fsVerityData
_VECTOR = Shape("", 1)  # inodes
_VERITY = Shape("", 2)  # digest, verity
_INODE = Shape("QHHIIIq", 2)  # ino, mode, permissions, uid, gid, mtimeNsec, mtime; mode's, additional
_INO = Shape("Q", 0)
_INO_AND_KIND = Shape("QHHI", 0)
_DEVICE = Shape("QQ", 0)  # major, minor
_DIR = Shape("Q", 1)  # lookBelow in bit 0; entries
_ENTRY = Shape("Q", 1)  # ino; name
_ADDITIONAL = Shape("", 2)  # xattrs, symlinkTarget
_XATTR = Shape("", 2)  # key, val


class InodeStat(NamedTuple):
    """What lstat(2) shows of an inode, without what it lists: cheap to read, and only what it takes for that is checked.

    The fields are those of `Inode`; `size` is that of a file's bytes or of a symlink's target.
    """

    kind: Kind
    permissions: int
    uid: int
    gid: int
    mtime: int
    mtime_nsec: int
    size: int
    device: tuple[int, int]


class ScannedInode(NamedTuple):
    """What one pass over all inodes tells of each: cheap to read, and only what it takes for that is checked.

    `opaque`: a directory that does not look below. `size`: bytes of a file. `links`: the numbers that a directory names,
    with repeats. An inode whose pointers are malformed is of kind UNKNOWN here and has nothing.
    """

    ino: int
    kind: Kind
    has_xattrs: bool
    opaque: bool
    size: int
    links: Sequence[int]


class RootfsMessage:
    """A rootfs metadata message, read in place from `data` (bytes or a map of a file, which must stay as it is).

    Layers are numbered from 0, the newest. Rows count from 0 within a layer's list of inodes. Safe to use from several
    threads.
    """

    def __init__(self, data: bytes | mmap.mmap | FoldedReader) -> None:
        """Open the message: a few microseconds, whatever its size.

        Raises:
            CorruptError: it is no message of this schema, or of a version that this program does not read.
        """
        size = data.size if isinstance(data, FoldedReader) else len(data)
        self.words = size // 8
        """The size of the message: an upper bound for everything that it can honestly list."""
        if self.words < 2 or size % 8:
            raise CorruptError(f"not a rootfs metadata message: {size} bytes")
        reader = data if isinstance(data, FoldedReader) else MessageReader(data)
        self._reader = reader
        self._used = 0  # so many inodes and digests were read since the last rest
        segment, at, (version, vectors_pointer, verity_pointer) = reader.root(_ROOTFS)
        if version != MANIFEST_VERSION:
            raise CorruptError(f"manifest version {version} is not readable by this program (it reads {MANIFEST_VERSION})")
        vectors = reader.structs(segment, at, vectors_pointer)
        if not 1 <= vectors.length <= LAYERS_MAX:
            raise CorruptError(f"{vectors.length} metadata layers, expected 1 to {LAYERS_MAX}")
        step = vectors.data_words + vectors.pointers
        self._layers = [
            self._list(vectors.segment, vectors.word + row * step + vectors.data_words, pointer, "inodes")
            for row, (pointer,) in enumerate(reader.rows(vectors, _VECTOR))
        ]
        self._verity = self._list(segment, at + 1, verity_pointer, "fs-verity digests")

    def fold(self, unfolded: Unfolded, descriptor: int) -> None:
        """Let go of the data and go on with a folded copy (`folded`), of which the fs-verity digests stay in the file
        `descriptor`, the message's to close. For its first user, before there are others."""
        kept = self._verity.word * 8 if self._verity.length else None
        self._reader = FoldedReader(self._reader.source, unfolded, descriptor, kept)

    def close(self) -> None:
        """Let go of the data. Reading afterwards is a programming error."""
        self._reader.close()

    def rest(self) -> None:
        """A mapped message need not be in memory, whoever goes through all of it."""
        self._used = 0
        self._reader.rest()

    @property
    def layers(self) -> int:
        """How many metadata layers the message has."""
        return len(self._layers)

    def inode_count(self, layer: int) -> int:
        """How many inodes `layer` lists."""
        return self._layers[layer].length

    @property
    def has_times(self) -> bool:
        """Whether its inodes have fields for times: those that upstream's program writes have none."""
        return any(inodes.data_words >= _INODE.data_words for inodes in self._layers)

    @property
    def verity_count(self) -> int:
        """How many chunks the message has fs-verity digests for."""
        return self._verity.length

    def ino_at(self, layer: int, row: int) -> int:
        """The number of the inode in `row`."""
        number: int = self._reader.row(self._layers[layer], row, _INO)[0]
        return number

    def numbers(self, layer: int) -> Iterator[tuple[int, Kind]]:
        """Number and type of all inodes of `layer`, in the order of their rows."""
        inodes = self._layers[layer]
        shape = _INODE if inodes.data_words == _INODE.data_words else _INO_AND_KIND
        for row, fields in enumerate(self._reader.rows(inodes, shape)):
            if not row % _STRIDE:
                self.rest()
            yield fields[0], _kind(fields[1])

    def kind_at(self, layer: int, row: int) -> Kind:
        """The type of the inode in `row`, without reading the rest of it."""
        return _kind(self._reader.row(self._layers[layer], row, _INO_AND_KIND)[1])

    def inode_at(self, layer: int, row: int) -> Inode:
        """The inode in `row`, whole and checked.

        Raises:
            CorruptError: it breaks a rule; the message names the inode and the rule.
        """
        self._used += 1
        if self._used > _STRIDE:
            self.rest()
        inodes = self._layers[layer]
        fields = self._reader.row(inodes, row, _INODE)
        ino, which, permissions, uid, gid, nsec, mtime, mode, additional = fields
        segment = inodes.segment
        at = inodes.word + row * (inodes.data_words + inodes.pointers) + inodes.data_words
        kind = _checked_kind(ino, which, permissions, nsec)
        xattrs: Sequence[Xattr] = ()
        target: bytes | None = None
        if additional:
            xattrs, target = self._additional(ino, segment, at + 1, additional)
        if (target is not None) != (kind is Kind.LNK):
            raise _no_target(ino)
        entries: Sequence[DirEntry] = ()
        chunks: Sequence[FileChunk] = ()
        look_below = False
        device = _NO_DEVICE
        if kind is Kind.FILE:
            chunks = FileChunks(self._reader, ino, self._list(segment, at, mode, "file chunks")).all()
        elif kind is Kind.DIR:
            look_below, stored = self._directory(segment, at, mode)
            entries = self._entries(ino, stored)
        elif kind is Kind.CHR or kind is Kind.BLK:
            device = self._device(ino, segment, at, mode)
        return Inode(ino, kind, permissions, uid, gid, mtime, nsec, device, entries, look_below, chunks, xattrs, target)

    def chunks_at(self, layer: int, row: int) -> Chunk | FileChunks | None:
        """What the file in `row` is made of; None if it is no regular file.

        Most files have one chunk, and lie as our writer lays them: those are read at once.

        Raises:
            CorruptError: the inode breaks a rule, other than in its chunks, which are checked when they are read.
        """
        inodes = self._layers[layer]
        ino, which, permissions, _, _, nsec, _, mode, additional = self._reader.row(inodes, row, _INODE)
        segment = inodes.segment
        at = inodes.word + row * (inodes.data_words + inodes.pointers) + inodes.data_words
        if _checked_kind(ino, which, permissions, nsec) is not Kind.FILE:
            return None
        if additional and self._additional(ino, segment, at + 1, additional)[1] is not None:
            raise _no_target(ino)
        only = filechunks.usual(self._reader, ino, segment, at, mode)
        if only is not None:
            return only
        return FileChunks(self._reader, ino, self._list(segment, at, mode, "file chunks"))

    def stat_at(self, layer: int, row: int, size: int = 0) -> InodeStat:
        """What lstat(2) shows of the inode in `row`; `size` is that of a file as `scan` found it, 0 where that is not known.

        Raises:
            CorruptError: it breaks a rule that concerns what is shown.
        """
        inodes = self._layers[layer]
        fields = self._reader.row(inodes, row, _INODE)
        ino, which, permissions, uid, gid, nsec, mtime, mode, additional = fields
        segment = inodes.segment
        at = inodes.word + row * (inodes.data_words + inodes.pointers) + inodes.data_words
        kind = _checked_kind(ino, which, permissions, nsec)
        device = _NO_DEVICE
        if kind is Kind.FILE:
            if mode and not size:
                size = self._file_size(ino, segment, at, mode)
        elif kind is Kind.LNK:
            target = self._additional(ino, segment, at + 1, additional)[1] if additional else None
            if target is None:
                raise _no_target(ino)
            size = len(target)
        elif kind is Kind.CHR or kind is Kind.BLK:
            device = self._device(ino, segment, at, mode)
        return InodeStat(kind, permissions, uid, gid, mtime, nsec, size, device)

    def scan(self, layer: int) -> Iterator[ScannedInode]:
        """All inodes of `layer` in the order of their rows, at the least cost for each.

        Raises:
            CorruptError: directories share their lists of entries, which would make the work quadratic.
        """
        inodes = self._layers[layer]
        segment = inodes.segment
        step = inodes.data_words + inodes.pointers
        at = inodes.word + inodes.data_words
        # What directories and files list takes more than a word an element, unless they share lists.
        entries_left = chunks_left = self.words
        for row, (ino, which, _, _, _, _, _, mode, additional) in enumerate(self._reader.rows(inodes, _INODE)):
            if not row % _STRIDE:
                self.rest()
            has_xattrs = opaque = False
            size = 0
            links: Sequence[int] = ()
            try:
                kind = _kind(which)
                if additional:
                    has_xattrs = self._has_xattrs(segment, at + 1, additional)
                if kind is Kind.FILE:
                    stored = self._list(segment, at, mode, "file chunks")
                    chunks_left -= stored.length
                    if chunks_left >= 0:
                        size = sum(self._reader.numbers(stored))
                elif kind is Kind.DIR:
                    look_below, stored = self._directory(segment, at, mode)
                    opaque = not look_below
                    entries_left -= stored.length
                    if entries_left >= 0:
                        links = self._reader.numbers(stored)
            except CorruptError:
                kind = Kind.UNKNOWN
            if entries_left < 0:
                raise CorruptError("rootfs metadata: its directories have more entries than inodes could account for")
            yield ScannedInode(ino, kind, has_xattrs, opaque, size, links)
            at += step

    def first_entries(self, layer: int) -> Iterator[tuple[int, int]]:
        """The number of the first entry of each directory of `layer` that has one, and the directory's own; not of those that
        break a rule."""
        inodes = self._layers[layer]
        step = inodes.data_words + inodes.pointers
        at = inodes.word + inodes.data_words
        for ino, which, _, _, _, _, _, mode, _ in self._reader.rows(inodes, _INODE):
            with contextlib.suppress(CorruptError):
                if _kind(which) is Kind.DIR:
                    _, stored = self._directory(inodes.segment, at, mode)
                    if stored.length:
                        yield self._reader.row(stored, 0, _INO)[0], ino
            at += step

    def verity_at(self, row: int) -> ChunkVerity:
        """Row `row` of the fs-verity digests."""
        self._used += 1
        if self._used > _STRIDE:
            self.rest()
        pairs = self._verity
        digest, verity = self._reader.row(pairs, row, _VERITY)
        at = pairs.word + row * (pairs.data_words + pairs.pointers) + pairs.data_words
        name, name_length = self._reader.data(pairs.segment, at, digest, 32)
        value, value_length = self._reader.data(pairs.segment, at + 1, verity, 32)
        if name_length != 32 or value_length != 32:
            raise CorruptError(f"fs-verity digest {row}: digests must have 32 bytes")
        return ChunkVerity(Digest(name), value)

    def _list(self, segment: int, at: int, pointer: int, what: str) -> StructList:
        # An honest list takes at least a word an element. One of structs without size would not, and could claim 2^29.
        found = self._reader.structs(segment, at, pointer)
        if found.length > self.words:
            raise CorruptError(f"{found.length} {what} in a message of {self.words} words")
        return found

    def _directory(self, segment: int, at: int, pointer: int) -> tuple[bool, StructList]:
        """Whether it looks below, and its entries."""
        segment, at, (flags, entries) = self._reader.struct(segment, at, pointer, _DIR)
        return bool(flags & 1), self._list(segment, at, entries, "directory entries")

    def _file_size(self, ino: int, segment: int, at: int, pointer: int) -> int:
        size = sum(self._reader.numbers(self._list(segment, at, pointer, "file chunks")))
        if size > FILE_MAX:
            raise CorruptError(f"inode {ino}: a file of {size} bytes")
        return size

    def _device(self, ino: int, segment: int, at: int, pointer: int) -> tuple[int, int]:
        major, minor = self._reader.struct(segment, at, pointer, _DEVICE)[2]
        if major > MAJOR_MAX or minor > MINOR_MAX:
            raise CorruptError(f"inode {ino}: device {major}:{minor} does not exist on Linux")
        return major, minor

    def _has_xattrs(self, segment: int, at: int, pointer: int) -> bool:
        segment, at, (xattrs, _) = self._reader.struct(segment, at, pointer, _ADDITIONAL)
        return self._reader.structs(segment, at, xattrs).length > 0

    def _additional(self, ino: int, segment: int, at: int, pointer: int) -> tuple[Sequence[Xattr], bytes | None]:
        segment, at, (xattrs, target) = self._reader.struct(segment, at, pointer, _ADDITIONAL)
        found = self._xattrs(ino, self._list(segment, at, xattrs, "xattrs")) if xattrs else ()
        if not target:
            return found, None
        value, length = self._reader.data(segment, at + 1, target, SYMLINK_MAX)
        if not 0 < length <= SYMLINK_MAX or b"\0" in value:
            raise CorruptError(f"inode {ino}: symlink target of {length} bytes, or with a NUL in it")
        return found, value

    def _xattrs(self, ino: int, stored: StructList) -> Sequence[Xattr]:
        reader = self._reader
        xattrs = []
        total = 0
        at = stored.word + stored.data_words
        for key_pointer, value_pointer in reader.rows(stored, _XATTR):
            key, key_length = reader.data(stored.segment, at, key_pointer, XATTR_KEY_MAX)
            value, length = reader.data(stored.segment, at + 1, value_pointer, XATTR_VALUE_MAX)
            if not 0 < key_length <= XATTR_KEY_MAX or b"\0" in key or length > XATTR_VALUE_MAX:
                raise CorruptError(f"inode {ino}: xattr with a key of {key_length} and a value of {length} bytes")
            total += length
            if total > self.words * 8:
                raise CorruptError(f"inode {ino}: xattrs share their values, which are longer together than the message")
            xattrs.append(Xattr(key, value))
            at += stored.data_words + stored.pointers
        return xattrs

    def _entries(self, ino: int, stored: StructList) -> Sequence[DirEntry]:
        reader = self._reader
        segment, word, _, data_words, pointers = stored
        entries = []
        at = word + data_words
        for number, pointer in reader.rows(stored, _ENTRY):
            name, length = reader.data(segment, at, pointer, _NAME_SHOWN)
            if not 0 < length <= NAME_MAX or b"/" in name or b"\0" in name or name in _NO_NAMES:
                raise CorruptError(f"inode {ino}: {name!r} is no name for a directory entry")
            entries.append(DirEntry(number, name))
            at += data_words + pointers
        if len({entry.name for entry in entries}) != len(entries):
            raise CorruptError(f"inode {ino}: a directory with two entries of the same name")
        return entries


def _no_target(ino: int) -> CorruptError:
    return CorruptError(f"inode {ino}: a symlink has a target, and nothing else has one")


def _checked_kind(ino: int, discriminant: int, permissions: int, nsec: int) -> Kind:
    """The type of an inode whose plain fields keep to their limits."""
    if permissions > 0o7777:
        raise CorruptError(f"inode {ino}: permissions {permissions:#o} exceed 0o7777")
    if nsec > 999_999_999:
        raise CorruptError(f"inode {ino}: {nsec} nanoseconds are more than a second")
    return _kind(discriminant)


def _kind(discriminant: int) -> Kind:
    if discriminant >= len(_KINDS):
        raise CorruptError(f"malformed Cap'n Proto message: an inode of type {discriminant}, which the schema does not know")
    return _KINDS[discriminant]
