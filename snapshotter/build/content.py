"""From a source to a built layer: its tree, its metadata message, and the order of its chunks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from snapshotter.build.chunk import ByteReader, Cutting
from snapshotter.build.decompress import Layer
from snapshotter.build.digesttable import DigestTable
from snapshotter.build.encoder import Encoder
from snapshotter.build.entries import Content, Node, Numbering, chunk_order, each_inode, number
from snapshotter.build.files import FileCutter
from snapshotter.build.layer import read_layer
from snapshotter.build.progress import Progress, Report, silent
from snapshotter.build.shelf import Shelf
from snapshotter.build.spool import RawSpool
from snapshotter.build.tar import TarReader
from snapshotter.build.tarheader import TarHeader
from snapshotter.build.walk import FileReader, check_empty, walk
from snapshotter.format.digest import Digest
from snapshotter.format.message import Message, Room
from snapshotter.format.model import ChunkVerity
from snapshotter.format.writer import build

Verity = Callable[[Digest], bytes]
"""The fs-verity digest of a chunk."""


@dataclass(frozen=True, slots=True)
class BuiltLayer:
    """A layer's metadata message, and its chunks in walk order, each once."""

    message: Message
    chunks: Sequence[Digest]


def layer_from_tar(
    stream: Layer,
    below: Sequence[Node],
    encoder: Encoder,
    cutting: Cutting,
    temporary: Path | None = None,
    shelf: Shelf | None = None,
) -> Node:
    """The tree of a layer's tar, its files cut. `below`: the trees of the earlier layers, top first, on the same `shelf`.

    `stream` is read to its end. Large files are cut as they pass, small ones kept in a temporary file until their order is
    known.

    Raises:
        InvalidError, CorruptError: see `layer.read_layer`; and what `stream` raises.
    """
    spool = RawSpool(temporary)
    try:
        cutter = FileCutter(cutting, encoder)

        def take(header: TarHeader, reader: TarReader) -> Content:
            content = Content(header.size)
            if cutter.stands_alone(header.size):
                cutter.cut_alone(content, reader)
            elif header.size:
                content.offset = spool.add(reader, header.size)
            return content

        def open_content(content: Content) -> ByteReader:
            return spool.reader_at(content.offset, content.size)

        reader = TarReader(stream)
        root = read_layer(reader, below, take, shelf)
        reader.drain()
        # What was cut as it passed must not be cut again with the rest.
        cutter.finish()
        cutter.cut_together(number(root).contents_by_directory(), open_content)
        cutter.finish()
    finally:
        spool.close()
    return root


def layer_from_directory(
    path: str | bytes | Path,
    encoder: Encoder,
    cutting: Cutting,
    report: Report = silent,
    shelf: Shelf | None = None,
    *,
    every_xattr: bool = False,
) -> Node:
    """The tree of a directory, its files cut. `shelf` and `every_xattr` as in `walk.walk`.

    Raises:
        NotFoundError, InvalidError, FailedPreconditionError: see `walk.walk` and `walk.FileReader`.
    """
    root = walk(path, shelf, every_xattr=every_xattr)
    cutter = FileCutter(cutting, encoder)
    numbering = number(root)
    total = sum(content.size for content in numbering.contents())
    done = 0

    def open_file(content: Content) -> ByteReader:
        nonlocal done
        report(Progress("read", os.fsdecode(path), done, total))
        done += content.size
        stamp, content.stamp = content.stamp, None  # the reader has it, and nobody else needs it
        return FileReader(content.path, content.size, stamp)

    for content in numbering.contents():
        if not content.size:
            check_empty(content.path, content.stamp)
        elif cutter.stands_alone(content.size):
            cutter.cut_alone(content, open_file(content))
    small = (
        [content for content in found if not cutter.stands_alone(content.size)] for found in numbering.contents_by_directory()
    )
    cutter.cut_together(small, open_file)
    cutter.finish()
    return root


def build_layer(root: Node, verity: Verity, room: Room | None = None, *, times: bool = True) -> BuiltLayer:
    """The message of a tree whose files are cut, made in `room`; `verity` knows every chunk's fs-verity digest."""
    numbering = number(root)
    chunks = distinct(numbering)
    return BuiltLayer(layer_message(numbering, chunks, verity, room, times=times), chunks)


def layer_message(
    numbering: Numbering, chunks: Sequence[Digest], verity: Verity, room: Room | None = None, *, times: bool = True
) -> Message:
    """The message of a tree in walk order with these `distinct` chunks; the rest as `build_layer` has it."""
    pairs = (ChunkVerity(digest, verity(digest)) for digest in sorted(chunks))
    return build([len(numbering)], [each_inode(numbering)], len(chunks), pairs, times=times, room=room)


def distinct(numbering: Numbering) -> DigestTable:
    """The chunks of a tree in walk order, each once."""
    return DigestTable(chunk_order(numbering))
