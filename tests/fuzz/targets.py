"""What is fuzzed: every reader of bytes that come from a registry, an image or a label.

A target takes any bytes. Errors of the product's own categories are answers; anything else that comes out of one (another
exception, a hang, memory without bound) is a defect. Each also checks what must hold of what was accepted.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from snapshotter.build import documents, rules
from snapshotter.build.decompress import LayerStream
from snapshotter.build.entries import Content, number
from snapshotter.build.layer import read_layer
from snapshotter.build.tar import TarReader
from snapshotter.build.tarheader import TarHeader
from snapshotter.errors import PuzzlefsError
from snapshotter.format import annotations as layer_labels
from snapshotter.format.compression import Codec, compress, decode_chunk, decode_seekable, decompress
from snapshotter.format.model import CHUNK_MAX, NAME_MAX, ChunkVerity, DirEntry, Kind
from snapshotter.format.pack import FOOTER_SIZE, HEADER, PackIndex, parse_footer
from snapshotter.format.rootfs import Rootfs
from snapshotter.mount.foresight import companions, elf, pyc, pyso, pysource
from snapshotter.mount.foresight.places import Places
from snapshotter.mount.tree import Tree
from snapshotter.registry import peerprotocol, reference
from snapshotter.registry.documents import is_index, manifest_type, parse_object

LIMIT = 1 << 20
"""Bytes that a decoder may produce in a target."""

INODES_LOOKED_AT = 300
MEMBER_BYTES = 1 << 20
BLOCK = 512
SAID_MAX = 64 << 10
"""Bytes of a connection, which a socket's buffer holds."""

T = TypeVar("T")

Target = Callable[[bytes], None]


def metadata(data: bytes) -> None:
    """A rootfs message as a mount sees it: opened, surveyed, walked from the root, its files' reads planned."""
    for as_layer in (False, True):
        tree = Tree(Rootfs.open(data), as_layer=as_layer)
        places = Places(tree)
        for ino in itertools.islice(_walk(tree), INODES_LOOKED_AT):
            _look_at(tree, ino)
            place = places.of(ino)
            assert place is None or DirEntry(ino, place.name) in tree.entries(place.directory)
        _answers(tree.statfs)
        tree.close()
    rootfs = Rootfs.open(data)
    for ino in itertools.islice(rootfs.numbers(), INODES_LOOKED_AT):
        _answers(rootfs.inode, ino)
        _answers(rootfs.link_count, ino)
    pairs: list[ChunkVerity] = _answers(list, itertools.islice(rootfs.verities(), INODES_LOOKED_AT)) or []
    for pair in pairs:
        _answers(rootfs.verity, pair.digest)
    rootfs.close()
    rules.check(data)


def _walk(tree: Tree) -> Iterator[int]:
    pending, seen = [1], {1}
    while pending:
        ino = pending.pop()
        yield ino
        for entry in _answers(tree.entries, ino) or ():
            assert 0 < len(entry.name) <= NAME_MAX
            assert entry.name not in (b".", b"..")
            assert not set(entry.name) & {0, ord("/")}
            child = _answers(tree.lookup, ino, entry.name)
            if child is not None and child not in seen and len(seen) < INODES_LOOKED_AT:
                seen.add(child)
                pending.append(child)


def _look_at(tree: Tree, ino: int) -> None:
    attributes = _answers(tree.attributes, ino)
    _answers(tree.readlink, ino)
    _answers(tree.xattrs, ino)
    tree.path(ino)
    for offset in (0, 4097, 1 << 40):
        pieces = _answers(tree.plan, ino, offset, 1 << 17) or ()
        assert sum(piece.length for piece in pieces) <= 1 << 17
        assert all(piece.offset + piece.length <= CHUNK_MAX for piece in pieces)
        if attributes is not None and pieces:
            assert offset + sum(piece.length for piece in pieces) <= attributes.size


def _answers(question: Callable[..., T], *arguments: object, **more: object) -> T | None:
    """What it answers; None for an error."""
    try:
        return question(*arguments, **more)
    except PuzzlefsError:
        return None


def tar(data: bytes) -> None:
    """A layer's tar; the checksums of its headers are made right first, which no mutation would."""

    def take(header: TarHeader, reader: TarReader) -> Content:
        buffer = memoryview(bytearray(64 << 10))
        left = min(header.size, MEMBER_BYTES)
        while left and (count := reader.readinto(buffer[:left])):
            left -= count
        content = Content(header.size)
        content.chunks = ()
        return content

    root = read_layer(TarReader(io.BytesIO(repaired(data))), (), take)
    for _, node in number(root):
        for name in node.names() if node.kind is Kind.DIR else ():
            assert 0 < len(name) <= NAME_MAX
            assert name not in (b".", b"..")
            assert not set(name) & {0, ord("/")}


def repaired(data: bytes) -> bytes:
    """`data` with the checksum of everything that calls itself a header made right."""
    out = bytearray(data)
    for at in range(0, len(out) - BLOCK + 1, BLOCK):
        if out[at + 257 : at + 262] == b"ustar":
            out[at + 148 : at + 156] = b" " * 8
            out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + BLOCK])
    return bytes(out)


def stream(data: bytes) -> None:
    """A layer's blob, whatever it is compressed with; only the first megabyte of what comes out is taken."""
    with LayerStream(io.BytesIO(data), "layer") as layer:
        while layer.length < LIMIT and (block := layer.read(LIMIT)):
            assert len(block) <= LIMIT


def zstd(data: bytes) -> None:
    """Everything that decodes zstd: chunks of declared length, blobs, upstream's seekable chunks."""
    for size in (0, 1, 4096, 70_000):
        raw = _answers(decode_chunk, Codec.ZSTD, data, size)
        assert raw is None or len(raw) == size
    whole = _answers(decompress, data, LIMIT)
    assert whole is None or len(whole) <= LIMIT
    seekable = _answers(decode_seekable, data, LIMIT)
    assert seekable is None or len(seekable) <= LIMIT


def manifest(data: bytes) -> None:
    """An image's manifest, an index, a configuration."""
    kind = _answers(manifest_type, data, None, "a manifest")
    entries = _answers(documents.parse_index, data, "an index")
    assert kind is None or isinstance(is_index(kind), bool)
    for entry in entries[0] if entries else ():
        _answers(documents.is_image, entry)
    for local in (False, True):
        image = _answers(documents.parse_manifest, data, "a manifest", local=local)
        if image is not None:
            _answers(documents.check_convertible, image, "an image")
            for layer in image.layers:
                assert len(layer.digest) == 32
                _answers(layer_labels.parse, layer.annotations)
    configuration = _answers(parse_object, data, "a configuration")
    if configuration is not None:
        _answers(documents.diff_ids, configuration, 3, "an image")


def labels(data: bytes) -> None:
    """A snapshot's labels: the known keys with whatever values."""
    values = data.decode("utf-8", "replace").split("\n")
    names = ("METADATA", "DIFF_ID", "VERITY", "PACKS", "SOURCE", "PACK")
    keys = [getattr(layer_labels, name) for name in names]
    for chosen in (keys, keys[:-1], keys[-1:]):
        found: Mapping[str, str] = dict(zip(chosen, values, strict=False))
        layer = _answers(layer_labels.parse, found)
        if layer is not None:
            assert layer_labels.parse(layer.annotations()) == layer
    for value in values[:3]:
        _answers(reference.parse, value)


def pack(data: bytes) -> None:
    """A pack's index: as it is stored, and as the message that is compressed in it; and its footer."""
    offset = 1 << 20
    for stored in (data, compress(data)):
        index = _answers(PackIndex.parse, stored, offset)
        for entry in index or ():
            assert len(HEADER) <= entry.offset
            assert entry.offset + entry.stored_length <= offset
            assert 0 < entry.stored_length <= entry.raw_length <= CHUNK_MAX
            assert index is not None
            assert index.find(entry.digest) == entry
        if index is not None:
            index.find(hashlib.sha256(data).digest())  # type: ignore[arg-type]  # any 32 bytes
    _answers(parse_footer, data[-FOOTER_SIZE:], len(data))


def peer(data: bytes) -> None:
    """What another node says: requests as they come in, and answers to requests, one after another on a connection."""
    for understand in (peerprotocol.asked, lambda head: peerprotocol.answered(head, CHUNK_MAX)):
        near, far = socket.socketpair()
        with near, far:
            far.setblocking(False)
            far.send(data[:SAID_MAX])
            far.close()
            stream = peerprotocol.Stream(near)
            with contextlib.suppress(ConnectionError, PuzzlefsError):
                while (head := stream.head()) is not None:
                    assert len(head.line) <= peerprotocol.LINE_MAX
                    assert len(head.headers) <= peerprotocol.HEADERS_MAX
                    length = understand(head)
                    if isinstance(length, int):
                        stream.exactly(length)


def program(data: bytes) -> None:
    """What is foreseen from files: of ELF files their parts and what they need, of Python modules what they import."""

    def read(offset: int, length: int) -> bytes:
        assert offset >= 0
        assert 0 <= length <= LIMIT
        return data[offset : offset + length]

    found = elf.parse(data[: elf.HEAD])
    if found is not None:
        assert len(elf.needed(found, read)) <= elf.NEEDED_MAX
        elf.interpreter(found, read)
        for segment in found.segments:
            companions.around(segment, len(data), 4096, len(data))
        assert sum(length for _, length in companions.mapped(found)) <= companions.SEGMENTS_MAX
        assert sum(length for _, length in companions.constants(found, LIMIT)) <= LIMIT
    for one in (*pyc.imports(data), *pysource.imports(data), *pyso.imports(data)):
        assert one.level >= 0
        assert len(one.name) + sum(map(len, one.names)) <= 256 * len(data)


_ALL: Sequence[Target] = (metadata, tar, stream, zstd, manifest, labels, pack, peer, program)
TARGETS: Mapping[str, Target] = {target.__name__: target for target in _ALL}


def run(name: str, data: bytes) -> None:
    """Give `data` to a target; errors are answers."""
    try:
        TARGETS[name](data)
    except PuzzlefsError:
        return
