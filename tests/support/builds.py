"""Layers built in memory, and what they hold in a form that can be compared."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

from snapshotter.build.chunk import Cutting
from snapshotter.build.content import BuiltLayer, build_layer, layer_from_directory, layer_from_tar
from snapshotter.build.decompress import LayerStream
from snapshotter.build.entries import Node
from snapshotter.build.shelf import Shelf
from snapshotter.build.spool import ChunkSpool
from snapshotter.build.spoolencoder import SpoolEncoder
from snapshotter.chunkstore.base import ChunkMissingError, ChunkRef
from snapshotter.format.compression import decode_chunk
from snapshotter.format.digest import Digest
from snapshotter.format.model import Kind
from snapshotter.format.rootfs import Rootfs

SMALL = Cutting(minimum=256, average=1024, maximum=4096, align=512, large=20_000)
"""Cutting by which a test's few kilobytes make many chunks, and some files are large."""


class Builder:
    """Builds layers into one spool, and is the chunk store of what it built."""

    name = "builder"

    def __init__(self, cutting: Cutting = SMALL, temporary: Path | None = None, leaves: int | None = None) -> None:
        """`leaves`: how many of them are in memory at most, at any time; all, if it is None."""
        self.spool = ChunkSpool(temporary)
        self._shelf = None if leaves is None else Shelf(temporary, leaves)
        self._cutting = cutting
        self._temporary = temporary

    def tar(self, tar: bytes, below: Sequence[Node] = ()) -> Node:
        with self._encoder() as encoder, LayerStream(io.BytesIO(tar), "layer") as stream:
            return layer_from_tar(stream, below, encoder, self._cutting, self._temporary, self._shelf)

    def tars(self, *tars: bytes) -> list[Node]:
        """The trees of layers on top of one another, the lowest first."""
        trees: list[Node] = []
        for tar in tars:
            trees.append(self.tar(tar, trees[::-1]))
        return trees

    def directory(self, path: Path) -> Node:
        with self._encoder() as encoder:
            return layer_from_directory(path, encoder, self._cutting, shelf=self._shelf)

    def layer(self, tree: Node, *, times: bool = True) -> BuiltLayer:
        return build_layer(tree, self.spool.verity, times=times)

    def rootfs(self, tree: Node) -> Rootfs:
        return Rootfs.open(self.layer(tree).message.to_bytes())

    def content(self, node: Node) -> bytes:
        """The bytes of a file."""
        assert node.content is not None
        found = b"".join(
            self.raw(chunk.digest)[chunk.offset : chunk.offset + chunk.length] for chunk in node.content.chunks or ()
        )
        assert len(found) == node.content.size
        return found

    def raw(self, digest: Digest) -> bytes:
        place = self.spool.place(digest)
        if place is None:
            raise ChunkMissingError(digest.hex())
        return decode_chunk(place.codec, self.spool.read(place), place.raw_length)

    def get(self, wanted: Sequence[ChunkRef]) -> list[bytes]:
        """See `ChunkStore`."""
        return [self.raw(ref.digest) for ref in wanted]

    def has(self, digest: Digest) -> bool:
        """See `ChunkStore`."""
        return self.spool.place(digest) is not None

    def close(self) -> None:
        self.spool.close()
        if self._shelf is not None:
            self._shelf.close()

    def __enter__(self) -> Builder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _encoder(self) -> SpoolEncoder:
        return SpoolEncoder(self.spool, 3, workers=2)


def at(root: Node, path: bytes) -> Node:
    """The node at `path`, no symlink followed; KeyError if nothing is there."""
    node = root
    for name in path.split(b"/"):
        node = node.names()[name]
    return node


def names(root: Node) -> set[bytes]:
    """All paths of a tree; a directory's end in a slash, a whiteout's in ``!``."""
    found: set[bytes] = set()
    pending = [(b"", root)]
    while pending:
        place, directory = pending.pop()
        for name, node in directory.names().items():
            path = os.path.join(place, name)
            if node.kind is Kind.DIR:
                pending.append((path, node))
                path += b"/"
            elif node.kind is Kind.WHT:
                path += b"!"
            found.add(path)
    return found
