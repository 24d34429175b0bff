"""Between Cap'n Proto messages and the values of `model`: the only module that knows pycapnp.

Reading goes through pycapnp, in place: nothing is parsed before it is asked for. What is read may be hostile, so every
value is checked as it becomes a model value, and a broken rule is a `CorruptError`; pycapnp's own limit on traversal is
replaced by bounds on every list, since a mounted layer is read for as long as the node runs. Writing lays the message out
by hand (`message`), in the order of construction that upstream's builder has.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeVar

import capnp

from snapshotter.errors import CorruptError
from snapshotter.format.digest import Digest
from snapshotter.format.message import MessageBuilder, Struct
from snapshotter.format.model import (
    CHUNK_MAX,
    NAME_MAX,
    ChunkVerity,
    DirEntry,
    FileChunk,
    Inode,
    Kind,
    RootfsContent,
    Xattr,
)

MANIFEST_VERSION = 3
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
FILE_MAX = (1 << 63) - 1

_NO_LIMIT = 1 << 60
_NESTING_MAX = 16

_T = TypeVar("_T")


def _load(name: str) -> Any:
    capnp.remove_import_hook()
    with resources.as_file(resources.files("snapshotter") / "schema" / name) as path:
        return capnp.load(str(path))


_rootfs_schema = _load("puzzlefs.capnp")
_pack_schema = _load("pack.capnp")


def _checked(read: Callable[[], _T]) -> _T:
    """What `read` returns; pycapnp's complaints about a malformed message become `CorruptError`."""
    try:
        return read()
    except (capnp.KjException, UnicodeDecodeError, ValueError, OverflowError) as error:
        raise CorruptError(f"malformed Cap'n Proto message: {str(error).splitlines()[0][:200]}") from None


class RootfsMessage:
    """A rootfs metadata message, read in place from `data` (bytes or a map of a file, which must stay as it is).

    Layers are numbered from 0, the newest. Rows count from 0 within a layer's list of inodes.
    """

    def __init__(self, data: bytes | mmap.mmap) -> None:
        """Open the message: a few microseconds, whatever its size.

        Raises:
            CorruptError: it is no message of this schema, or of a version that this program does not read.
        """
        self.words = len(data) // 8
        """The size of the message: an upper bound for everything that it can honestly list."""
        if self.words < 2 or len(data) % 8:
            raise CorruptError(f"not a rootfs metadata message: {len(data)} bytes")

        def open_message() -> None:
            context = _rootfs_schema.Rootfs.from_bytes(data, traversal_limit_in_words=_NO_LIMIT, nesting_limit=_NESTING_MAX)
            self._root = context.__enter__()
            self._context = context
            version = self._root.manifestVersion
            if version != MANIFEST_VERSION:
                raise CorruptError(f"manifest version {version} is not readable by this program (it reads {MANIFEST_VERSION})")
            vectors = self._root.metadatas
            if not 1 <= len(vectors) <= LAYERS_MAX:
                raise CorruptError(f"{len(vectors)} metadata layers, expected 1 to {LAYERS_MAX}")
            self._layers = [self._bounded(vector.inodes, "inodes") for vector in vectors]
            self._verity = self._bounded(self._root.fsVerityData, "fs-verity digests")

        _checked(open_message)

    def close(self) -> None:
        """Let go of the data. Reading afterwards is a programming error."""
        if self._context is not None:
            self._context.__exit__(None, None, None)
            self._context = None

    @property
    def layers(self) -> int:
        """How many metadata layers the message has."""
        return len(self._layers)

    def inode_count(self, layer: int) -> int:
        """How many inodes `layer` lists."""
        return len(self._layers[layer])

    @property
    def verity_count(self) -> int:
        """How many chunks the message has fs-verity digests for."""
        return len(self._verity)

    def ino_at(self, layer: int, row: int) -> int:
        """The number of the inode in `row`."""
        number: int = _checked(lambda: self._layers[layer][row].ino)
        return number

    def kind_at(self, layer: int, row: int) -> Kind:
        """The type of the inode in `row`, without reading the rest of it."""
        return _checked(lambda: _KINDS[self._layers[layer][row].mode.which()])

    def links_at(self, layer: int, row: int) -> list[int]:
        """The numbers that the directory in `row` names, with repeats, names unread; nothing for other types."""

        def read() -> list[int]:
            mode = self._layers[layer][row].mode
            if mode.which() != "dir":
                return []
            return [entry.ino for entry in self._bounded(mode.dir.entries, "directory entries")]

        return _checked(read)

    def has_xattrs_at(self, layer: int, row: int) -> bool:
        """Whether the inode in `row` has extended attributes."""

        def read() -> bool:
            inode = self._layers[layer][row]
            return inode._has("additional") and len(inode.additional.xattrs) > 0

        return _checked(read)

    def inode_at(self, layer: int, row: int) -> Inode:
        """The inode in `row`, whole and checked.

        Raises:
            CorruptError: it breaks a rule; the message names the inode and the rule.
        """
        return _checked(lambda: self._inode(self._layers[layer][row]))

    def verity_at(self, row: int) -> ChunkVerity:
        """Row `row` of the fs-verity digests."""

        def read() -> ChunkVerity:
            pair = self._verity[row]
            digest, verity = pair.digest, pair.verity
            if len(digest) != 32 or len(verity) != 32:
                raise CorruptError(f"fs-verity digest {row}: digests must have 32 bytes")
            return ChunkVerity(Digest(digest), verity)

        return _checked(read)

    def _bounded(self, values: Any, what: str) -> Any:
        # An honest list takes at least a word an element. One of structs without size would not, and could claim 2^29.
        if len(values) > self.words:
            raise CorruptError(f"{len(values)} {what} in a message of {self.words} words")
        return values

    def _inode(self, inode: Any) -> Inode:
        ino = inode.ino
        mode = inode.mode
        kind = _KINDS[mode.which()]
        permissions, nsec = inode.permissions, inode.mtimeNsec
        if permissions > 0o7777:
            raise CorruptError(f"inode {ino}: permissions {permissions:#o} exceed 0o7777")
        if nsec > 999_999_999:
            raise CorruptError(f"inode {ino}: {nsec} nanoseconds are more than a second")
        xattrs, target = self._additional(ino, inode)
        if (target is not None) != (kind is Kind.LNK):
            raise CorruptError(f"inode {ino}: a symlink has a target, and nothing else has one")
        entries: Sequence[DirEntry] = ()
        chunks: Sequence[FileChunk] = ()
        look_below = False
        device = (0, 0)
        if kind is Kind.FILE:
            chunks = self._chunks(ino, mode.file)
        elif kind is Kind.DIR:
            directory = mode.dir
            look_below = directory.lookBelow
            entries = self._entries(ino, directory.entries)
        elif kind in (Kind.CHR, Kind.BLK):
            pair = mode.chr if kind is Kind.CHR else mode.blk
            device = (pair.major, pair.minor)
            if device[0] > MAJOR_MAX or device[1] > MINOR_MAX:
                raise CorruptError(f"inode {ino}: device {device[0]}:{device[1]} does not exist on Linux")
        return Inode(
            ino, kind, permissions, inode.uid, inode.gid, inode.mtime, nsec, device, entries, look_below, chunks, xattrs, target
        )

    def _additional(self, ino: int, inode: Any) -> tuple[Sequence[Xattr], bytes | None]:
        if not inode._has("additional"):
            return (), None
        additional = inode.additional
        xattrs = []
        for pair in self._bounded(additional.xattrs, "xattrs"):
            key, value = pair.key, pair.val
            if not 0 < len(key) <= XATTR_KEY_MAX or b"\0" in key or len(value) > XATTR_VALUE_MAX:
                raise CorruptError(f"inode {ino}: xattr with a key of {len(key)} and a value of {len(value)} bytes")
            xattrs.append(Xattr(key, value))
        if not additional._has("symlinkTarget"):
            return xattrs, None
        target = additional.symlinkTarget
        if not 0 < len(target) <= SYMLINK_MAX or b"\0" in target:
            raise CorruptError(f"inode {ino}: symlink target of {len(target)} bytes, or with a NUL in it")
        return xattrs, target

    def _entries(self, ino: int, stored: Any) -> Sequence[DirEntry]:
        entries = [DirEntry(entry.ino, entry.name) for entry in self._bounded(stored, "directory entries")]
        names = {entry.name for entry in entries}
        if len(names) != len(entries):
            raise CorruptError(f"inode {ino}: a directory with two entries of the same name")
        for name in names:
            if not 0 < len(name) <= NAME_MAX or b"/" in name or b"\0" in name or name in (b".", b".."):
                raise CorruptError(f"inode {ino}: {name[:300]!r} is no name for a directory entry")
        return entries

    def _chunks(self, ino: int, stored: Any) -> Sequence[FileChunk]:
        chunks = []
        size = 0
        for piece in self._bounded(stored, "file chunks"):
            blob = piece.blob
            digest, offset, length = blob.digest, blob.offset, piece.len
            if len(digest) != 32:
                raise CorruptError(f"inode {ino}: a chunk's digest has {len(digest)} bytes instead of 32")
            if length == 0 or offset + length > CHUNK_MAX:
                raise CorruptError(f"inode {ino}: bytes {offset}+{length} of a chunk, which has at most {CHUNK_MAX}")
            size += length
            chunks.append(FileChunk(Digest(digest), offset, length, blob.compressed))
        if size > FILE_MAX:
            raise CorruptError(f"inode {ino}: a file of {size} bytes")
        return chunks


_KINDS = {
    "unknown": Kind.UNKNOWN,
    "fifo": Kind.FIFO,
    "chr": Kind.CHR,
    "dir": Kind.DIR,
    "blk": Kind.BLK,
    "file": Kind.FILE,
    "lnk": Kind.LNK,
    "sock": Kind.SOCK,
    "wht": Kind.WHT,
}


def encode(content: RootfsContent, *, times: bool = True) -> bytes:
    """The canonical message for `content`. Without `times` it is upstream's, which has no fields for them.

    The order of construction, which decides where objects lie, is upstream's; see ``message`` for the allocation.
    """
    message = MessageBuilder(1, 2)
    root = message.root
    root.u64(0, MANIFEST_VERSION)
    vectors = root.structs(0, len(content.layers), 0, 1)
    for vector, inodes in zip(vectors, content.layers, strict=True):
        structs = vector.structs(0, len(inodes), 4 if times else 3, 2)
        for struct, inode in zip(structs, inodes, strict=True):
            _encode_inode(struct, inode, times=times)
    for pair, verity in zip(root.structs(1, len(content.verity), 0, 2), content.verity, strict=True):
        pair.data(0, verity.digest)
        pair.data(1, verity.verity)
    return message.to_bytes()


def _encode_inode(struct: Struct, inode: Inode, *, times: bool) -> None:
    struct.u64(0, inode.ino)
    struct.u16(8, inode.kind)
    if inode.kind is Kind.DIR:
        directory = struct.struct(0, 1, 1)
        directory.u64(0, int(inode.look_below))
        for slot, entry in zip(directory.structs(0, len(inode.entries), 1, 1), inode.entries, strict=True):
            slot.u64(0, entry.ino)
            slot.data(0, entry.name)
    elif inode.kind is Kind.FILE:
        for slot, chunk in zip(struct.structs(0, len(inode.chunks), 1, 1), inode.chunks, strict=True):
            slot.u64(0, chunk.length)
            blob = slot.struct(0, 2, 1)
            blob.data(0, chunk.digest)
            blob.u64(0, chunk.offset)
            blob.u64(8, int(chunk.compressed))
    elif inode.kind in (Kind.CHR, Kind.BLK):
        device = struct.struct(0, 2, 0)
        device.u64(8, inode.device[1])
        device.u64(0, inode.device[0])
    struct.u32(12, inode.uid)
    struct.u32(16, inode.gid)
    struct.u16(10, inode.permissions)
    if inode.xattrs or inode.target is not None:
        additional = struct.struct(1, 0, 2)
        for slot, xattr in zip(additional.structs(0, len(inode.xattrs), 0, 2), inode.xattrs, strict=True):
            slot.data(1, xattr.value)
            slot.data(0, xattr.key)
        if inode.target is not None:
            additional.data(1, inode.target)
    if times:
        struct.i64(24, inode.mtime)
        struct.u32(20, inode.mtime_nsec)


@dataclass(frozen=True, slots=True)
class PackColumns:
    """The columns of a pack's index (schema/pack.capnp), row i of each for the same chunk, in the order of the digests."""

    digests: bytes
    raw_lengths: Sequence[int]
    offsets: Sequence[int]
    stored_lengths: Sequence[int]
    codecs: Sequence[int]


PACK_INDEX_VERSION = 1


def encode_pack_index(columns: PackColumns) -> bytes:
    """The index as a message, laid out like every other message of ours."""
    count = len(columns.raw_lengths)
    message = MessageBuilder(1, 5)
    root = message.root
    root.u32(0, PACK_INDEX_VERSION)
    root.u32(4, count)
    root.data(0, columns.digests)
    root.numbers(1, columns.raw_lengths, "I")
    root.numbers(2, columns.offsets, "Q")
    root.numbers(3, columns.stored_lengths, "I")
    root.numbers(4, columns.codecs, "B")
    return message.to_bytes()


def decode_pack_index(message: bytes) -> PackColumns:
    """The columns that `message` holds; that they are consistent is for the caller to check.

    Raises:
        CorruptError: it is no message of this schema, or of another version.
    """

    def read() -> PackColumns:
        with _pack_schema.PackIndex.from_bytes(message, traversal_limit_in_words=_NO_LIMIT, nesting_limit=_NESTING_MAX) as root:
            if root.version != PACK_INDEX_VERSION:
                raise CorruptError(
                    f"pack index version {root.version} is not readable by this program (it reads {PACK_INDEX_VERSION})"
                )
            count = root.count
            lists = (root.rawLengths, root.offsets, root.storedLengths, root.codecs)
            if count * 32 > len(message) or any(len(values) != count for values in lists):
                raise CorruptError(
                    f"pack index: {count} rows in a message of {len(message)} bytes, or columns that differ in length"
                )
            raw, offsets, stored, codecs = (array(code, values) for code, values in zip("IQIB", lists, strict=True))
            return PackColumns(root.digests, raw, offsets, stored, codecs)

    return _checked(read)
