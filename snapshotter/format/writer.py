"""Writes rootfs metadata messages: the canonical bytes of schema/puzzlefs.capnp for given inodes.

The layout is part of the canonical form (docs/format.md, section 3), and so is the order of construction, which decides where
objects lie; both are upstream's. What an inode lists nearly always ends up in one piece, one object behind the other, so it is
made as one piece; only where a segment ends within it, object after object is allocated by `message`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import islice

from snapshotter.format.message import LIST_OF_BYTES, LIST_OF_STRUCTS, MessageBuilder, Room, Segment, Struct
from snapshotter.format.model import ChunkVerity, DirEntry, FileChunk, Inode, Kind, RootfsContent, Xattr

MANIFEST_VERSION = 3
DIGEST_SIZE = 32

_STRIDE = 8192
"""After so many inodes, 1 or 2 MB of the message, what they are written to may go to where it is kept."""

_SOME = 512
"""So many chunks' digests are written at once: more take more memory than time."""

_LIST = 1  # the low bits of a pointer to a list; those of one to a struct are zero
_ROOT = (1, 2)  # data words and pointers of each struct
_VECTOR = (0, 1)
_INODE = (4, 2)
_INODE_WITHOUT_TIMES = (3, 2)
_DIR = (1, 1)
_ENTRY = (1, 1)
_CHUNK = (1, 1)
_BLOB = (2, 1)
_DEVICE = (2, 0)
_ADDITIONAL = (0, 2)
_XATTR = (0, 2)
_VERITY = (0, 2)

_PUT_INODE = struct.Struct("<QHHIIIqQQ").pack_into
_PUT_INODE_WITHOUT_TIMES = struct.Struct("<QHHIIIQQ").pack_into
_GET_POINTER = struct.Struct("<Q").unpack_from


def _upper(size: tuple[int, int]) -> int:
    """The upper half of a pointer to a struct of that size, and of a list's tag."""
    return (size[0] | size[1] << 16) << 32


_ENTRY_TAG = _upper(_ENTRY)
_CHUNK_TAG = _upper(_CHUNK)
_XATTR_TAG = _upper(_XATTR)
_BLOB_POINTER = _upper(_BLOB)
_DIGEST_POINTER = _LIST | (LIST_OF_BYTES | 32 << 3) << 32
_PAIR_WORDS = 8
_ONE_CHUNK = struct.Struct("<QQQQQQ32s").pack
_PACK_BLOB = struct.Struct("<QQQ32s").pack


def encode(content: RootfsContent, *, times: bool = True) -> bytes:
    """The canonical message for `content`. Without `times` it is upstream's, which has no fields for them."""
    counts = [len(inodes) for inodes in content.layers]
    return build(counts, content.layers, len(content.verity), content.verity, times=times).to_bytes()


def build(
    counts: Sequence[int],
    layers: Iterable[Iterable[Inode]],
    verity_count: int,
    verity: Iterable[ChunkVerity],
    *,
    times: bool = True,
    room: Room | None = None,
) -> MessageBuilder:
    """The message of `encode`, from inodes and fs-verity digests that are taken one by one: `counts` of them in each layer.

    It is made in `room`, if one is named.

    Raises:
        ValueError: there are more or less of something than was said.
    """
    message = MessageBuilder(*_ROOT, room)
    root = message.root
    root.u64(0, MANIFEST_VERSION)
    vectors = root.structs(0, len(counts), *_VECTOR)
    for vector, count, inodes in zip(vectors, counts, layers, strict=True):
        _write_layer(message, vector, count, inodes, times=times)
    pairs = zip(root.structs(1, verity_count, *_VERITY), verity, strict=True)
    for number, some in enumerate(iter(lambda: list(islice(pairs, _SOME)), [])):
        if not number % (_STRIDE // _SOME):
            message.rest()
        for slot, pair in some[_put_pairs(some) :]:
            slot.data(0, pair.digest)
            slot.data(1, pair.verity)
    return message


def _put_pairs(pairs: Sequence[tuple[Struct, ChunkVerity]]) -> int:
    """Store the first of `pairs`, those that the segment in which they are listed has room for; how many that is."""
    first = pairs[0][0]
    segment, at = first.segment, first.word
    count = min(len(pairs), segment.free // _PAIR_WORDS)
    digests = [digest for _, pair in pairs[:count] for digest in (pair.digest, pair.verity)]
    if any(len(digest) != DIGEST_SIZE for digest in digests):
        return 0
    # Digests take 4 words each; the pointers to them stand one behind the other.
    pointer = _DIGEST_POINTER + (segment.used - at - 1 << 2)
    pointers = [pointer + (3 * number << 2) for number in range(len(digests))]
    segment.data[at * 8 : (at + len(pointers)) * 8] = struct.pack(f"<{len(pointers)}Q", *pointers)
    segment.append(b"".join(digests))
    return count


def _write_layer(message: MessageBuilder, vector: Struct, count: int, inodes: Iterable[Inode], *, times: bool) -> None:
    size = _INODE if times else _INODE_WITHOUT_TIMES
    for number, (slot, inode) in enumerate(zip(vector.structs(0, count, *size), inodes, strict=True)):
        if not number % _STRIDE:
            message.rest()
        segment, word = slot.segment, slot.word
        at = word + size[0]
        kind = inode.kind
        mode = additional = 0
        if kind is Kind.FILE:
            chunks = list(inode.chunks)  # they may be made as they are taken
            length = 2 * len(chunks)
            if all(len(chunk.digest) == DIGEST_SIZE for chunk in chunks):
                piece = _file_piece(chunks)
                mode = message.graft(segment, at, length + 1, _LIST | (LIST_OF_STRUCTS | length << 3) << 32, piece)
            if not mode:
                _put_chunks(slot, chunks)
                mode = _pointer(segment, at)
        elif kind is Kind.DIR:
            mode = message.graft(segment, at, sum(_DIR), _upper(_DIR), _directory_piece(inode))
            if not mode:
                _put_directory(slot, inode)
                mode = _pointer(segment, at)
        elif kind is Kind.CHR or kind is Kind.BLK:
            device = slot.struct(0, *_DEVICE)
            device.u64(0, inode.device[0])
            device.u64(8, inode.device[1])
            mode = _pointer(segment, at)
        if inode.xattrs or inode.target is not None:
            piece = _additional_piece(inode.xattrs, inode.target)
            additional = message.graft(segment, at + 1, sum(_ADDITIONAL), _upper(_ADDITIONAL), piece)
            if not additional:
                _put_additional(slot, inode.xattrs, inode.target)
                additional = _pointer(segment, at + 1)
        plain = (segment.data, word * 8, inode.ino, kind, inode.permissions, inode.uid, inode.gid)
        if times:
            _PUT_INODE(*plain, inode.mtime_nsec, inode.mtime, mode, additional)
        else:
            _PUT_INODE_WITHOUT_TIMES(*plain, 0, mode, additional)


def _pointer(segment: Segment, at: int) -> int:
    value: int = _GET_POINTER(segment.data, at * 8)[0]
    return value


# What an inode lists, in one piece. A pointer counts from the word behind it.


def _file_piece(chunks: Sequence[FileChunk]) -> bytes:
    count = len(chunks)
    if count == 1:
        (chunk,) = chunks
        return _ONE_CHUNK(
            1 << 2 | _CHUNK_TAG, chunk.length, _BLOB_POINTER, chunk.offset, chunk.compressed, _DIGEST_POINTER, chunk.digest
        )
    words = [count << 2 | _CHUNK_TAG]
    # Blob and digest of a chunk take 7 words, its element in the list 2.
    distance = (2 * count - 2) << 2 | _BLOB_POINTER
    for chunk in chunks:
        words += (chunk.length, distance)
        distance += 5 << 2
    blobs = [_PACK_BLOB(chunk.offset, chunk.compressed, _DIGEST_POINTER, chunk.digest) for chunk in chunks]
    return struct.pack(f"<{len(words)}Q", *words) + b"".join(blobs)


def _directory_piece(inode: Inode) -> bytes:
    entries = inode.entries
    count = len(entries)
    words = [inode.look_below, _LIST | (LIST_OF_STRUCTS | 2 * count << 3) << 32, count << 2 | _ENTRY_TAG]
    names = []
    distance = 2 * count - 2
    for entry in entries:
        name = entry.name
        size = len(name)
        words += (entry.ino, distance << 2 | _LIST | (LIST_OF_BYTES | size << 3) << 32)
        names.append(name)
        if size & 7:
            names.append(_ZEROS[size & 7])
        distance += (size + 7 >> 3) - 2
    return struct.pack(f"<{len(words)}Q", *words) + b"".join(names)


_ZEROS = tuple(bytes(-used % 8) for used in range(8))
"""What fills up a word of which so many bytes are used."""


def _additional_piece(xattrs: Sequence[Xattr], target: bytes | None) -> bytes:
    count = len(xattrs)
    words = [1 << 2 | _LIST | (LIST_OF_STRUCTS | 2 * count << 3) << 32, 0, count << 2 | _XATTR_TAG]
    parts = []
    at = 3 + 2 * count
    for xattr in xattrs:
        value_at, value, key = at, xattr.value, xattr.key
        key_at = value_at + (len(value) + 7 >> 3)
        words += (
            _data_pointer(len(words), key_at, key),
            _data_pointer(len(words) + 1, value_at, value),
        )
        parts += [value, _ZEROS[len(value) & 7], key, _ZEROS[len(key) & 7]]
        at = key_at + (len(key) + 7 >> 3)
    if target is not None:
        words[1] = _data_pointer(1, at, target)
        parts += [target, _ZEROS[len(target) & 7]]
    return struct.pack(f"<{len(words)}Q", *words) + b"".join(parts)


def _data_pointer(at: int, target: int, value: bytes) -> int:
    return (target - at - 1) << 2 | _LIST | (LIST_OF_BYTES | len(value) << 3) << 32


# The same, object after object, each where there is room for it.


def _put_chunks(inode: Struct, chunks: Sequence[FileChunk]) -> None:
    for slot, chunk in zip(inode.structs(0, len(chunks), *_CHUNK), chunks, strict=True):
        slot.u64(0, chunk.length)
        blob = slot.struct(0, *_BLOB)
        blob.data(0, chunk.digest)
        blob.u64(0, chunk.offset)
        blob.u64(8, int(chunk.compressed))


def _put_directory(slot: Struct, inode: Inode) -> None:
    directory = slot.struct(0, *_DIR)
    directory.u64(0, int(inode.look_below))
    entries: Sequence[DirEntry] = inode.entries
    for place, entry in zip(directory.structs(0, len(entries), *_ENTRY), entries, strict=True):
        place.u64(0, entry.ino)
        place.data(0, entry.name)


def _put_additional(inode: Struct, xattrs: Sequence[Xattr], target: bytes | None) -> None:
    additional = inode.struct(1, *_ADDITIONAL)
    for slot, xattr in zip(additional.structs(0, len(xattrs), *_XATTR), xattrs, strict=True):
        slot.data(1, xattr.value)
        slot.data(0, xattr.key)
    if target is not None:
        additional.data(1, target)
