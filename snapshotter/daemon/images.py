"""Opens an image for reading as one tree, from a layout or an archive: for ``mount``, ``extract`` and whoever looks into one.

Two forms are known: upstream's layout (one rootfs blob, every chunk a blob of its own) and ours (metadata layers, then packs).
Of ours, several layers are merged into one tree, as overlayfs would show them; an image with ordinary layers among them
cannot be shown this way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from snapshotter.build.flatten import flatten
from snapshotter.build.layout import ROOTFS_TYPE, VERITY_ANNOTATION
from snapshotter.build.readmessage import hold, hold_compressed, pieces
from snapshotter.chunkstore.base import ChunkStore
from snapshotter.chunkstore.chain import layout_chain, packs_chain
from snapshotter.chunkstore.stats import Stats
from snapshotter.daemon import metadata
from snapshotter.errors import CorruptError, InvalidError
from snapshotter.format.annotations import MetadataLayer, PackPlace
from snapshotter.format.annotations import parse as puzzlefs_layer
from snapshotter.format.digest import Digest, to_text
from snapshotter.format.rootfs import Rootfs
from snapshotter.format.verity import verity_digest
from snapshotter.format.writer import encode
from snapshotter.registry import documents
from snapshotter.registry.base import LOCAL_MANIFEST_MAX, Descriptor
from snapshotter.registry.layoutreader import LayoutReader
from snapshotter.registry.platforms import Platform, select


@dataclass(frozen=True, slots=True)
class OpenImage:
    """An image's tree and the place of its chunks."""

    name: str
    rootfs: Rootfs
    chunks: ChunkStore


@contextlib.contextmanager
def open_image(store: LayoutReader, reference: str, platform: Platform, digest: bytes | None = None) -> Iterator[OpenImage]:
    """The image `reference` of `store` (of an index, the one for `platform`), open for as long as the block lasts.

    If `digest` is given, its manifest has that fs-verity digest. Everything else is named by the manifest, directly or through
    the metadata, with a digest that is checked, so no other image is opened and no other byte is read.

    Raises:
        NotFoundError: there is no such image.
        InvalidError: it is no PuzzleFS image.
        CorruptError, UnavailableError: it cannot be read, or is not the one with that digest.
    """
    name = f"{store.name}:{reference}"
    data = _manifest(store, reference, platform, name)
    if digest is not None and (found := verity_digest(data)) != digest:
        raise CorruptError(f"the manifest of {name} has the fs-verity digest {found.hex()}, not {digest.hex()}")
    manifest = documents.parse_object(data, name, LOCAL_MANIFEST_MAX)
    layers = [documents.descriptor_from_json(layer, name) for layer in manifest.get("layers", [])]
    if layers and layers[0].media_type == ROOTFS_TYPE:
        rootfs, chunks = _open_upstream(store, layers)
    else:
        rootfs, chunks = _open_packed(store, layers, name)
    try:
        yield OpenImage(name, rootfs, chunks)
    finally:
        chunks.close()
        rootfs.close()


def _manifest(store: LayoutReader, reference: str, platform: Platform, name: str) -> bytes:
    descriptor, data = store.manifest(reference)
    if documents.is_index(descriptor.media_type):
        entries = [documents.descriptor_from_json(entry, name) for entry in documents.parse_object(data, name)["manifests"]]
        _, data = store.manifest(to_text(select(entries, platform, name).digest))
    return data


def _open_upstream(store: LayoutReader, layers: Sequence[Descriptor]) -> tuple[Rootfs, ChunkStore]:
    # The manifest of a delta lists the delta's chunks alone, so sizes of older ones are not known from it.
    with _blob(store, layers[0], metadata.MESSAGE_MAX) as stream:
        message = hold(pieces(stream))
    declared = layers[0].annotations.get(VERITY_ANNOTATION)
    if declared is not None and declared.lower() != message.verity().hex():
        raise CorruptError(f"{store.name}: the fs-verity digest of the metadata is not the one that its manifest states")
    rootfs = Rootfs.open(message.data)
    return rootfs, layout_chain(store, store.blob_size, Stats())


def _open_packed(store: LayoutReader, layers: Sequence[Descriptor], name: str) -> tuple[Rootfs, ChunkStore]:
    messages: list[Rootfs] = []
    packs: dict[Digest, PackPlace] = {}
    for layer in layers:
        described = puzzlefs_layer(layer.annotations)
        if described is None:
            raise InvalidError(
                f"{name}: layer {to_text(layer.digest)} ({layer.media_type}) is no PuzzleFS layer: "
                "make an image of them with puzzlefs convert"
            )
        if isinstance(described, MetadataLayer):
            with _blob(store, layer, metadata.STORED_MAX) as stream:
                messages.append(Rootfs.open(hold_compressed(stream, metadata.MESSAGE_MAX).data))
            packs |= {place.pack: place for place in described.packs}
    if not messages:
        raise InvalidError(f"{name} has no metadata layers: it is no PuzzleFS image")
    rootfs = messages[0] if len(messages) == 1 else Rootfs.open(encode(flatten(messages)))
    return rootfs, packs_chain(list(packs.values()), store, Stats())


def _blob(store: LayoutReader, blob: Descriptor, limit: int) -> BinaryIO:
    if blob.size > limit:
        raise CorruptError(f"blob {to_text(blob.digest)} of {store.name} has {blob.size} bytes, at most {limit} are read")
    return store.open_blob(blob)
