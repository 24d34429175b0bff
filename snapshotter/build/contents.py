"""What an image consists of, in whichever form it is: for those who check it, count it or compare it.

Two forms are known: upstream's layout (one rootfs blob, every chunk a blob of its own), which only local images have, and ours
(metadata layers, then packs), which may have ordinary layers among its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from snapshotter.build.documents import ImageManifest, is_image, parse_index, parse_manifest
from snapshotter.build.layout import MESSAGE_MAX, ROOTFS_TYPE, read_message
from snapshotter.build.marked import MarkedInodes
from snapshotter.build.readmessage import ReadMessage, hold_compressed
from snapshotter.build.reuse import read_json
from snapshotter.errors import CorruptError, InvalidError, NotFoundError, UnsupportedError
from snapshotter.format.annotations import MEDIA_TYPE_PACK, MetadataLayer, PackPlace
from snapshotter.format.annotations import parse as puzzlefs_layer
from snapshotter.format.compression import Codec, decode_seekable
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.format.model import CHUNK_MAX, FileChunk, Inode, Kind
from snapshotter.format.pack import PackIndex
from snapshotter.format.rootfs import Rootfs
from snapshotter.registry.base import Descriptor, ImageStore, Layout
from snapshotter.registry.documents import is_index
from snapshotter.registry.platforms import Platform, select

METADATA_STORED_MAX = 256 << 20
"""Largest stored metadata blob that is read, in bytes."""

_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class ManifestOf:
    """One image of a place: what it is called in messages, its manifest and that manifest's descriptor and bytes."""

    name: str
    descriptor: Descriptor
    data: bytes
    manifest: ImageManifest

    @property
    def local(self) -> bool:
        """Whether it is in upstream's layout."""
        return bool(self.manifest.layers) and self.manifest.layers[0].media_type == ROOTFS_TYPE


@dataclass(frozen=True, slots=True)
class LayerContent:
    """One metadata layer: its descriptor, its message (uncompressed), what its annotations say (None in upstream's layout)."""

    descriptor: Descriptor
    message: ReadMessage
    rootfs: Rootfs
    described: MetadataLayer | None


@dataclass(slots=True)
class ImageContent:
    """An open image. `packs` are those that its metadata layers name, by digest; `sizes` the stored sizes of their blobs."""

    image: ManifestOf
    store: ImageStore
    layers: list[LayerContent] = field(default_factory=list)
    packs: dict[Digest, tuple[PackPlace, PackIndex]] = field(default_factory=dict)
    sizes: dict[Digest, int] = field(default_factory=dict)
    ordinary: list[Descriptor] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return self.image.name

    def config(self) -> Mapping[str, Any]:
        """The image's configuration; empty for a local image."""
        return (
            {} if self.image.local else read_json(self.store, self.image.manifest.config, f"the configuration of {self.name}")
        )


def manifests(store: ImageStore, reference: str, platform: Platform | None = None) -> list[ManifestOf]:
    """The images that `reference` stands for: of an index, the one for `platform`, or all of them.

    Raises:
        NotFoundError: there is no such image, or none for that platform. CorruptError, UnavailableError: see `ImageStore`.
        UnsupportedError: it is an index of indexes.
    """
    descriptor, data = store.manifest(reference)
    name = f"{store.name}@{reference}" if ":" in reference else f"{store.name}:{reference}"
    if not is_index(descriptor.media_type):
        return [ManifestOf(name, descriptor, data, parse_manifest(data, name, local=True))]
    entries = [entry for entry in parse_index(data, name)[0] if is_image(entry)]
    if platform is not None:
        entries = [select(entries, platform, name)]
    found = []
    for entry in entries:
        if is_index(entry.media_type):
            raise UnsupportedError(f"{name} is an index of indexes; name one of them by its digest")
        described, content = store.manifest(to_text(entry.digest))
        said = entry.platform or {}
        which = "/".join(str(said[key]) for key in ("os", "architecture", "variant") if said.get(key))
        called = f"{name} ({which or to_text(entry.digest)})"
        found.append(ManifestOf(called, described, content, parse_manifest(content, called, local=True)))
    return found


@contextlib.contextmanager
def opened(store: ImageStore, image: ManifestOf) -> Iterator[ImageContent]:
    """The image with its metadata and the indexes of its packs, open for as long as the block lasts.

    Raises:
        InvalidError: it has no PuzzleFS layer. CorruptError, NotFoundError, UnavailableError: see `ImageStore`.
    """
    content = ImageContent(image, store)
    try:
        if image.local:
            message = read_message(store, image.descriptor, image.data, image.name)
            content.layers.append(LayerContent(image.manifest.layers[0], message, Rootfs.open(message.data), None))
        else:
            _open_packed(content)
        yield content
    finally:
        for layer in content.layers:
            layer.rootfs.close()


def _open_packed(content: ImageContent) -> None:
    store, image = content.store, content.image
    for layer in image.manifest.layers:
        described = puzzlefs_layer(layer.annotations)
        if isinstance(described, MetadataLayer):
            content.layers.append(metadata_layer(store, layer, described, image.name))
            for place in described.packs:
                if place.pack not in content.packs:
                    content.packs[place.pack] = (place, pack_index(store, place))
        elif layer.media_type == MEDIA_TYPE_PACK:
            content.sizes[layer.digest] = layer.size
        else:
            content.ordinary.append(layer)
    if not content.layers:
        raise InvalidError(f"{image.name} is not a PuzzleFS image: make one of it with puzzlefs convert")


def metadata_layer(store: ImageStore, layer: Descriptor, described: MetadataLayer, what: str) -> LayerContent:
    """The metadata layer `layer` of our form, checked against everything that its annotations say.

    Raises:
        CorruptError: it is something else. NotFoundError, UnavailableError: see `ImageStore`.
    """
    called = f"{what}: metadata layer {to_text(layer.digest)}"
    if layer.size > METADATA_STORED_MAX:
        raise CorruptError(f"{called} has {layer.size} bytes; at most {METADATA_STORED_MAX} are read")
    if described.metadata != layer.digest:
        raise CorruptError(f"{called}: its annotations are those of {to_text(described.metadata)}")
    try:
        with store.open_blob(layer) as stream:
            message = hold_compressed(stream, MESSAGE_MAX)
    except CorruptError as error:
        raise CorruptError(f"{called}: {error}") from None
    diff_id = message.digest()
    if diff_id != described.diff_id:
        raise CorruptError(f"{called} has the diff ID {to_text(diff_id)}, its annotations say {to_text(described.diff_id)}")
    try:
        return LayerContent(layer, message, Rootfs.open(message.data), described)
    except CorruptError as error:
        raise CorruptError(f"{called}: {error}") from None


def pack_index(store: ImageStore, place: PackPlace) -> PackIndex:
    """The index of the pack at `place`.

    Raises:
        CorruptError: there is none. NotFoundError, UnavailableError: see `ImageStore`.
    """
    try:
        return PackIndex.parse(store.read_range(place.pack, place.index_offset, place.index_length), place.index_offset)
    except CorruptError as error:
        raise CorruptError(f"the index of pack {to_text(place.pack)} in {store.name}: {error}") from None


@dataclass(frozen=True, slots=True)
class ChunkFacts:
    """A chunk by its raw bytes: its name, its length, and the bytes that it takes where it is stored, which is `home`."""

    digest: Digest
    raw: int
    stored: int
    home: Digest


def chunk_facts(content: ImageContent) -> dict[Digest, ChunkFacts]:
    """Every chunk that the image's files name, by that name. A local image's compressed chunks are decoded to learn theirs.

    `home` is the pack, or the chunk's own blob. Chunks that are nowhere are left out: `verify` tells of them.

    Raises:
        CorruptError: a local chunk does not decode. UnavailableError: see `ImageStore`.
    """
    facts: dict[Digest, ChunkFacts] = {}
    for layer in content.layers:
        places = layer.described.packs if layer.described is not None else ()
        indexes = [_Pack(place.pack, content.packs[place.pack][1]) for place in places]
        for inode in layer.rootfs.inodes():
            for chunk in inode.chunks:
                if chunk.digest in facts:
                    continue
                if layer.described is None:
                    found = _local_chunk(content.store, chunk)
                else:
                    found = next((fact for pack in indexes if (fact := pack.find(chunk.digest)) is not None), None)
                if found is not None:
                    facts[chunk.digest] = found
    return facts


class _Pack:
    """What chunks take in a pack. A group's bytes are shared out to its chunks by their lengths."""

    def __init__(self, digest: Digest, index: PackIndex) -> None:
        self._digest = digest
        self._index = index
        self._groups: dict[int, int] = {}
        for entry in index if index.has_groups else ():
            if entry.codec is Codec.GROUP:
                self._groups[entry.offset] = self._groups.get(entry.offset, 0) + entry.raw_length

    def find(self, digest: Digest) -> ChunkFacts | None:
        entry = self._index.find(digest)
        if entry is None:
            return None
        stored = entry.stored_length
        if entry.codec is Codec.GROUP:
            stored = stored * entry.raw_length // self._groups[entry.offset]
        return ChunkFacts(digest, entry.raw_length, stored, self._digest)


def _local_chunk(store: ImageStore, chunk: FileChunk) -> ChunkFacts | None:
    size = store.blob_size(chunk.digest) if isinstance(store, Layout) else None
    if size is None:
        return None
    if not chunk.compressed:
        return ChunkFacts(chunk.digest, size, size, chunk.digest)
    if size > CHUNK_MAX:
        raise CorruptError(f"{store.name}: chunk {to_text(chunk.digest)} has {size} bytes; at most {CHUNK_MAX} are accepted")
    try:
        raw = decode_seekable(store.read_range(chunk.digest, 0, size), CHUNK_MAX)
    except CorruptError as error:
        raise CorruptError(f"{store.name}: chunk {to_text(chunk.digest)}: {error}") from None
    return ChunkFacts(sha256(raw), len(raw), size, chunk.digest)


def files_with(rootfs: Rootfs, chunks: set[Digest]) -> dict[Digest, str]:
    """For each of `chunks`, the files that need it, as a person wants to read it: ``/usr/bin/x and 3 more``."""
    users: dict[Digest, list[str]] = {}
    counts: dict[Digest, int] = {}
    for path, inode in walk(rootfs):
        for digest in {chunk.digest for chunk in inode.chunks} & chunks:
            counts[digest] = counts.get(digest, 0) + 1
            if counts[digest] <= _NAMES_SHOWN:
                users.setdefault(digest, []).append("/" + path.decode(errors="backslashreplace"))
    return {
        digest: ", ".join(named) + (f" and {counts[digest] - len(named)} more" if counts[digest] > len(named) else "")
        for digest, named in users.items()
    }


def walk(rootfs: Rootfs) -> Iterator[tuple[bytes, Inode]]:
    """Every inode once, by the first path in walk order that leads to it; what cannot be read is left out."""
    seen = MarkedInodes(rootfs)
    pending: list[tuple[bytes, int]] = [(b"", 1)]
    while pending:
        path, ino = pending.pop()
        if not seen.add(ino):
            continue
        try:
            inode = rootfs.inode(ino)
        except (CorruptError, NotFoundError):
            continue
        yield path, inode
        if inode.kind is Kind.DIR:
            prefix = path + b"/" if path else b""
            pending += [(prefix + entry.name, entry.ino) for entry in reversed(inode.entries)]
