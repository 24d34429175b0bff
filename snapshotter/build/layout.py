"""Writes a directory as a local image: an OCI layout as upstream's builder makes it, with our cutting and with times.

One blob a chunk. With compression a chunk is stored in zstd's seekable format where that is smaller, and named by its stored
bytes; the fs-verity digest is always that of the blob, which upstream gets wrong where a chunk stays raw.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapshotter.build.chunk import CutChunk
from snapshotter.build.content import build_layer, layer_from_directory
from snapshotter.build.documents import describe
from snapshotter.build.encoder import Encoded, ParallelEncoder
from snapshotter.build.image import Options
from snapshotter.build.progress import Report, silent
from snapshotter.format.compression import encode_seekable
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.verity import verity_digest
from snapshotter.registry.base import Descriptor, ImageStore
from snapshotter.registry.documents import OCI_MANIFEST, canonical_json, descriptor_to_json
from snapshotter.registry.platforms import Platform

ROOTFS_TYPE = "application/vnd.puzzlefs.image.rootfs.v1"
FILEDATA_TYPE = "application/vnd.puzzlefs.image.filedata.v1"
FILEDATA_ZSTD_TYPE = FILEDATA_TYPE + "+zstd"
VERITY_ANNOTATION = "io.puzzlefsoci.puzzlefs.puzzlefs_verity_root_hash"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"


@dataclass(frozen=True, slots=True)
class BuiltLayout:
    """The manifest of a local image, and its fs-verity digest, by which the image is mounted and pinned."""

    manifest: Descriptor
    verity: bytes


def build_layout(
    tree: str | bytes | Path,
    layout: ImageStore,
    tag: str,
    *,
    compress: bool = False,
    options: Options | None = None,
    report: Report = silent,
) -> BuiltLayout:
    """Build the directory `tree` into `layout` under `tag`. The tag is set when everything else is in place.

    Raises:
        NotFoundError, InvalidError, FailedPreconditionError: `tree` does not exist, is no directory, or cannot be read.
        UnavailableError: see `ImageStore`.
    """
    chosen = options or Options()
    chunks = _LayoutChunks(layout, encode_seekable if compress else None)
    with ParallelEncoder(chunks.encode, chunks.take, chosen.workers) as encoder:
        root = layer_from_directory(tree, encoder, chosen.cutting, report)
    built = build_layer(root, chunks.verity)
    rootfs = describe(ROOTFS_TYPE, built.message, {VERITY_ANNOTATION: verity_digest(built.message).hex()})
    layout.put_blob(rootfs, io.BytesIO(built.message))
    layout.put_blob(describe(EMPTY_TYPE, b"{}"), io.BytesIO(b"{}"))
    kind = FILEDATA_ZSTD_TYPE if compress else FILEDATA_TYPE
    data = [Descriptor(kind, digest, chunks.sizes[digest]) for digest in built.chunks]
    content = _manifest([rootfs, *data])
    here = Platform.of_this_machine()
    manifest = describe(OCI_MANIFEST, content, platform={"architecture": here.architecture, "os": here.os})
    layout.put_manifest(manifest, content, tag)
    return BuiltLayout(manifest, verity_digest(content))


def _manifest(layers: list[Descriptor]) -> bytes:
    config: dict[str, Any] = {**descriptor_to_json(describe(EMPTY_TYPE, b"{}")), "data": "e30="}
    return canonical_json({"schemaVersion": 2, "config": config, "layers": [descriptor_to_json(layer) for layer in layers]})


class _LayoutChunks:
    """Stores each chunk as a blob; what `ParallelEncoder` needs of it."""

    def __init__(self, layout: ImageStore, compress: Callable[[bytes], bytes | None] | None) -> None:
        self._layout = layout
        self._compress = compress
        self._known: dict[Digest, CutChunk] = {}
        self.verity: dict[Digest, bytes] = {}
        self.sizes: dict[Digest, int] = {}

    def encode(self, raw: bytes) -> Encoded:
        """Called from several threads: a blob may take its time to reach the disk."""
        name = sha256(raw)
        known = self._known.get(name)
        if known is not None:
            return Encoded(known)
        compressed = self._compress(raw) if self._compress is not None else None
        stored = raw if compressed is None else compressed
        digest = name if compressed is None else sha256(stored)
        self._layout.put_blob(Descriptor(FILEDATA_TYPE, digest, len(stored)), io.BytesIO(stored))
        chunk = CutChunk(digest, len(raw), compressed is not None)
        self._known[name] = chunk
        self.verity[digest] = verity_digest(stored)
        self.sizes[digest] = len(stored)
        return Encoded(chunk)

    def take(self, encoded: Encoded) -> None:
        """Nothing is left to do."""
