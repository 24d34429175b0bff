"""Compression with a bound on what comes out: chunks in packs, whole blobs, and upstream's seekable chunks.

Whatever is decoded here may be hostile: no function produces more than the length that its caller declared, and every
failure is a `CorruptError`. zstandard's objects are made per call because they must not be shared between threads; making
one takes about 1 µs, a chunk about 100 µs.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, cast

import zstandard

from snapshotter.errors import CorruptError

DEFAULT_LEVEL = 15
"""zstd's level for what nodes fetch: an image is compressed once and moved many times (docs/decisions/cutting.md)."""

METADATA_LEVEL = 9
"""zstd's level for metadata: 8 % smaller than at level 3, for 0.1 s an image of 20,000 inodes. Level 15 takes
five times as long, and 75 MB more in memory, for half a percent (docs/decisions/cutting.md)."""

SEEKABLE_LEVEL = 3
"""Upstream's, which decides the digests of its compressed chunks."""

SEEKABLE_FRAME = 4096
"""Raw bytes in each frame of upstream's seekable chunks; the last one may be shorter."""

_SKIPPABLE_MAGIC = 0x184D2A5E  # zstd's seekable format: the skippable frame that holds the seek table
_SEEKABLE_MAGIC = 0x8F92EAB1
_SEEK_FOOTER = struct.Struct("<IBI")  # number of frames, descriptor, magic
_SKIPPABLE_HEADER = struct.Struct("<II")
_HEADER_MAX = 18
_PART = 1 << 20
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class Codec(enum.IntEnum):
    """How a pack stores a chunk; the values of `codecs` in schema/pack.capnp."""

    RAW = 0
    ZSTD = 1
    GROUP = 2
    """One frame around several chunks (`encode_group`)."""


GROUP_RAW_MAX = 16 << 20
"""Most raw bytes of a group."""


class ChunkEncoder:
    """Encodes many chunks on one thread: the compressor's tables are made once, which halves the time a chunk takes.

    The same chunk gives the same bytes whatever was encoded before it.
    """

    def __init__(self, level: int = DEFAULT_LEVEL) -> None:
        """`level` is zstd's."""
        self._compressor = zstandard.ZstdCompressor(level=level, write_content_size=True)

    def encode(self, raw: bytes | memoryview) -> tuple[Codec, bytes]:
        """`raw` as a pack stores it: one zstd frame, or as it is where that is not smaller."""
        compressed = self._compressor.compress(raw)
        return (Codec.ZSTD, compressed) if len(compressed) < len(raw) else (Codec.RAW, bytes(raw))


def encode_chunk(raw: bytes | memoryview, level: int = DEFAULT_LEVEL) -> tuple[Codec, bytes]:
    """`raw` as a pack stores it; for more than a few, `ChunkEncoder`."""
    return ChunkEncoder(level).encode(raw)


def decode_chunk(codec: Codec, stored: bytes, raw_length: int) -> bytes:
    """The chunk that `stored` encodes.

    Raises:
        CorruptError: `stored` does not decode to exactly `raw_length` bytes, or is a group.
    """
    if codec is Codec.GROUP:
        raise CorruptError("it is stored in a group, not alone")
    if codec is Codec.RAW:
        if len(stored) != raw_length:
            raise CorruptError(f"stored raw with {len(stored)} bytes instead of {raw_length}")
        return stored
    return _decompress_exactly(stored, raw_length)


def encode_group(chunks: Sequence[bytes], level: int) -> bytes:
    """Several chunks, one after another, as one zstd frame."""
    return compress(b"".join(chunks), level)


def decode_group(stored: bytes) -> bytes:
    """The raw bytes of a group, out of which its chunks are cut.

    Raises:
        CorruptError: it does not decode, or to more than `GROUP_RAW_MAX` bytes.
    """
    return decompress(stored, GROUP_RAW_MAX)


def compress(data: bytes, level: int = DEFAULT_LEVEL) -> bytes:
    """`data` as one zstd frame with its content size. The same input and libzstd give the same bytes."""
    return zstandard.ZstdCompressor(level=level, write_content_size=True).compress(data)


def compress_parts(parts: Iterable[bytes | memoryview], size: int, level: int) -> Iterator[bytes]:
    """`parts`, `size` bytes together, as one zstd frame with its content size. Where `parts` begin and end does not matter.

    zstd copies what comes into a window of its own and compresses it a block at a time, whenever a block is full. What comes
    of that is not always what `compress` makes of the same bytes.

    Raises:
        ValueError: there are less or more bytes than `size`.
    """
    stream = zstandard.ZstdCompressor(level=level, write_content_size=True).compressobj(size=size)
    try:
        for part in parts:
            yield stream.compress(part)
        yield stream.flush()
    except zstandard.ZstdError as error:
        raise ValueError(f"there are not {size} bytes to compress: {error}") from error


def decompress(data: bytes, limit: int) -> bytes:
    """The content of the zstd frame `data`, at most `limit` bytes.

    Raises:
        CorruptError: it is no zstd frame with a content size, is cut short, or holds more than `limit`.
    """
    try:
        size = zstandard.frame_content_size(data)
    except zstandard.ZstdError as error:
        raise CorruptError(f"not a zstd frame: {error}") from error
    if size < 0:
        raise CorruptError("zstd frame without a content size")
    if size > limit:
        raise CorruptError(f"zstd frame declares {size} bytes, at most {limit} are accepted")
    return _decompress_exactly(data, size)


def decompress_parts(stream: BinaryIO, limit: int) -> Iterator[bytes]:
    """What `decompress` makes of the bytes of `stream`, a megabyte at a time: whoever takes it takes the end before it is sure.

    Raises what `decompress` raises, at the end too, and what reading raises.
    """
    head = stream.read(_HEADER_MAX)
    try:
        size = zstandard.frame_content_size(head)
    except zstandard.ZstdError as error:
        raise CorruptError(f"not a zstd frame: {error}") from error
    if head[:4] != _ZSTD_MAGIC or size < 0:
        raise CorruptError("not a zstd frame, or one without a content size")
    if size > limit:
        raise CorruptError(f"zstd frame declares {size} bytes, at most {limit} are accepted")
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    count = 0
    # What stands behind the frame is decoded too, and is too much.
    source = cast("BinaryIO", _Rejoined(head, stream))
    with decompressor.stream_reader(source, read_size=_PART, read_across_frames=True, closefd=False) as raw:
        while True:
            try:
                part = raw.read(_PART)
            except zstandard.ZstdError as error:
                raise CorruptError(f"zstd cannot decode it: {error}") from error
            count += len(part)
            if count > size or (not part and count < size):
                raise CorruptError(f"decodes to {'more' if part else count} bytes instead of {size}")
            if not part:
                return
            yield part


class _Rejoined:
    """A stream of which the `head` has been read."""

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        self._head = head
        self._stream = stream

    def read(self, size: int) -> bytes:
        head, self._head = self._head, b""
        return head or self._stream.read(size)


def _decompress_exactly(data: bytes, size: int) -> bytes:
    if data[:4] != _ZSTD_MAGIC:
        raise CorruptError("not a zstd frame")
    try:
        # A frame that declares its size is decoded into a buffer of that size, so the declaration is checked first.
        declared = zstandard.frame_content_size(data)
        if declared not in (size, -1):
            raise CorruptError(f"zstd frame declares {declared} bytes instead of {size}")
        raw = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompress(
            data, max_output_size=max(size, 1), allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise CorruptError(f"zstd cannot decode it: {error}") from error
    if len(raw) != size:
        raise CorruptError(f"decodes to {len(raw)} bytes instead of {size}")
    return raw


def encode_seekable(raw: bytes | memoryview) -> bytes | None:
    """`raw` as upstream stores a compressed chunk: in zstd's seekable format; None where that is not smaller."""
    encoded = seekable(raw)
    return encoded if len(encoded) < len(raw) else None


def seekable(raw: bytes | memoryview) -> bytes:
    """`raw` in zstd's seekable format, 4096 raw bytes a frame, whatever comes of it.

    Frames carry neither content size nor checksum, as upstream's writer streams them.
    """
    compressor = zstandard.ZstdCompressor(level=SEEKABLE_LEVEL, write_content_size=False, write_checksum=False)
    out = bytearray()
    table = bytearray()
    count = 0
    for at in range(0, len(raw), SEEKABLE_FRAME):
        piece = raw[at : at + SEEKABLE_FRAME]
        stream = compressor.compressobj()
        frame = stream.compress(piece) + stream.flush()
        out += frame
        table += _SKIPPABLE_HEADER.pack(len(frame), len(piece))
        count += 1
    out += _SKIPPABLE_HEADER.pack(_SKIPPABLE_MAGIC, len(table) + _SEEK_FOOTER.size)
    out += table
    out += _SEEK_FOOTER.pack(count, 0, _SEEKABLE_MAGIC)
    return bytes(out)


def decode_seekable(stored: bytes, limit: int) -> bytes:
    """The raw bytes of a chunk in zstd's seekable format, at most `limit`.

    The seek table is not needed to read the whole chunk and is not trusted; the frames are decoded one after another.

    Raises:
        CorruptError: it does not decode, or to more than `limit` bytes.
    """
    out = bytearray()
    rest = memoryview(stored)
    while len(rest):
        if len(rest) >= _SKIPPABLE_HEADER.size:
            magic, length = _SKIPPABLE_HEADER.unpack_from(rest)
            if magic & 0xFFFFFFF0 == 0x184D2A50:
                rest = rest[_SKIPPABLE_HEADER.size + length :]
                continue
        stream = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
        try:
            size = zstandard.frame_content_size(rest)
            if size > limit - len(out):
                raise CorruptError(f"seekable chunk holds more than {limit} bytes")
            # Without a declared size a frame of a few bytes can decode to gigabytes, so input is fed in small steps.
            consumed = 0
            while not stream.eof and consumed < len(rest):
                step = rest[consumed : consumed + 512]
                out += stream.decompress(step)
                consumed += len(step) - len(stream.unused_data)
                if len(out) > limit:
                    raise CorruptError(f"seekable chunk holds more than {limit} bytes")
        except zstandard.ZstdError as error:
            raise CorruptError(f"seekable chunk does not decode: {error}") from error
        if not stream.eof:
            raise CorruptError("seekable chunk is cut short")
        rest = rest[consumed:]
    return bytes(out)
