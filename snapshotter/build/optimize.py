"""Adds a start profile to an image: the chunks that a start reads, in a pack of their own, named by the metadata layers.

Nothing else of the image changes: its layers' diff IDs, and so the chains that are unpacked on nodes, stay those that they
were; the packs stay where they are, so images that share them go on sharing them.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from snapshotter.build.documents import (
    OCI_CONFIG,
    ImageManifest,
    describe,
    diff_ids,
    is_image,
    new_config,
    new_index,
    new_manifest,
    parse_index,
    parse_manifest,
)
from snapshotter.build.profile import LEVEL, write_profile_pack
from snapshotter.build.progress import Progress, Report, silent
from snapshotter.build.publish import WHOLE_MAX
from snapshotter.build.readmessage import hold_compressed
from snapshotter.build.reuse import StoredPack, read_json
from snapshotter.build.rewrite import PackCopier
from snapshotter.errors import FailedPreconditionError, InvalidError
from snapshotter.format.annotations import MEDIA_TYPE_METADATA, MEDIA_TYPE_PACK, MetadataLayer, PackLayer, PackPlace, parse
from snapshotter.format.compression import compress, compress_parts, decode_chunk
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.format.pack import PackIndex
from snapshotter.registry.base import Descriptor, ImageStore
from snapshotter.registry.documents import OCI_INDEX, OCI_MANIFEST, is_index
from snapshotter.registry.platforms import Platform, select

METADATA_MAX = 1 << 30
"""Largest metadata message that is stored anew, in bytes."""


@dataclass(frozen=True, slots=True)
class Optimized:
    """What was made: the image's manifest or index, how many chunks of the profile it has, and what they take in bytes: in the
    profile pack, and in the packs that they were read from."""

    manifest: Descriptor
    chunks: int
    unknown: int
    stored: int
    stored_before: int


@dataclass(frozen=True, slots=True)
class FoundImage:
    """One image of a store: its manifest, its place in the index that lists it (None: it stands alone)."""

    manifest: ImageManifest
    config: Mapping[str, Any]
    name: str
    entry: Descriptor | None = None


def find_image(store: ImageStore, reference: str, platform: Platform) -> FoundImage:
    """The image `reference` of `store`, of an index the one for `platform`.

    Raises:
        NotFoundError: there is none.
        InvalidError: it has no layers in the PuzzleFS format.
        CorruptError, UnavailableError: it cannot be read.
    """
    descriptor, data = store.manifest(reference)
    what = f"{store.name}@{reference}" if ":" in reference else f"{store.name}:{reference}"
    entry = None
    if is_index(descriptor.media_type):
        entries, _ = parse_index(data, what)
        entry = select([each for each in entries if is_image(each)], platform, what)
        _, data = store.manifest(to_text(entry.digest))
    manifest = parse_manifest(data, what)
    if not any(layer.media_type == MEDIA_TYPE_METADATA for layer in manifest.layers):
        raise InvalidError(f"{what} is no PuzzleFS image; convert it first")
    return FoundImage(manifest, read_json(store, manifest.config, f"the configuration of {what}"), what, entry)


def optimize(
    source: ImageStore,
    reference: str,
    destination: ImageStore,
    tag: str | None,
    profile: Sequence[Digest],
    *,
    platform: Platform,
    destination_name: str | None = None,
    level: int = LEVEL,
    temporary: Path | None = None,
    report: Report = silent,
) -> Optimized:
    """Store the image `reference` of `source` in `destination` as `tag`, with those chunks of `profile` that it has in a pack.

    Of an index, the image for `platform` gets the profile, the others are stored as they are. An earlier profile goes.

    Raises:
        InvalidError: it is no PuzzleFS image, or has none of the profile's chunks.
        NotFoundError, CorruptError, UnavailableError: see `ImageStore`.
        FailedPreconditionError: the pack cannot be kept in the `temporary` directory meanwhile.
    """
    work = _Work(source, destination, report)
    image = find_image(source, reference, platform)
    done = work.image(image, profile, destination_name, level, temporary)
    if image.entry is None:
        final, content = done.manifest, done.content
    else:
        _, data = source.manifest(reference)
        entries, annotations = parse_index(data, image.name)
        destination.put_manifest(done.manifest, done.content, None)
        for entry in entries:
            if entry.digest != image.entry.digest:
                work.copy_manifest(entry)
        changed = replace(done.manifest, annotations=image.entry.annotations, platform=image.entry.platform)
        content = new_index([changed if entry.digest == image.entry.digest else entry for entry in entries], annotations)
        final = describe(OCI_INDEX, content)
    destination.put_manifest(final, content, tag)
    return Optimized(final, done.chunks, len(profile) - done.chunks, done.stored, done.stored_before)


@dataclass(frozen=True, slots=True)
class _Done:
    manifest: Descriptor
    content: bytes
    chunks: int
    stored: int
    stored_before: int


class _Work:
    def __init__(self, source: ImageStore, destination: ImageStore, report: Report) -> None:
        self._source = source
        self._destination = destination
        self._report = report

    def image(
        self, image: FoundImage, profile: Sequence[Digest], source_name: str | None, level: int, temporary: Path | None
    ) -> _Done:
        """Store one image, its profile pack last of its packs."""
        layers = image.manifest.layers
        described = {layer.digest: parse(layer.annotations) for layer in layers}
        metadata = {digest: said for digest, said in described.items() if isinstance(said, MetadataLayer)}
        packs = self._packs(layers, [place for said in metadata.values() for place in said.packs])
        homes = _homes(packs, profile)
        if not homes:
            raise InvalidError(
                f"{image.name} has none of the {len(profile)} chunks of the profile: is it that of another image?"
            )
        place, size = self._write(packs, homes, level, temporary)
        stored = []
        for layer in layers:
            said = described[layer.digest]
            if layer.media_type == MEDIA_TYPE_METADATA and isinstance(said, MetadataLayer):
                stored.append(self._metadata(layer, said, packs, place, source_name))
            elif not isinstance(said, PackLayer) or said.pack in packs:
                self._copy(layer)
                stored.append(layer)
        # behind the last pack, so that the metadata layers keep their chains
        stored.append(Descriptor(MEDIA_TYPE_PACK, place.pack, size, PackLayer(place.pack).annotations()))
        ids = dict(zip((layer.digest for layer in layers), diff_ids(image.config, len(layers), image.name), strict=True))
        packed = {layer.digest for layer in layers if isinstance(described[layer.digest], PackLayer)}
        kept = [ids[layer.digest] for layer in layers if layer.digest not in packed]
        config = new_config(image.config, kept, [layer.digest for layer in stored if layer.media_type == MEDIA_TYPE_PACK])
        blob = describe(OCI_CONFIG, config)
        self._destination.put_blob(blob, io.BytesIO(config))
        content = new_manifest(blob, stored, image.manifest.annotations)
        before = sum(entry.stored_length for pack in packs.values() for entry in pack.index if homes.get(entry.digest) is pack)
        return _Done(describe(OCI_MANIFEST, content), content, len(homes), size, before)

    def _packs(self, layers: Sequence[Descriptor], places: Sequence[PackPlace]) -> dict[Digest, StoredPack]:
        """The packs of single chunks, by digest; an earlier profile pack is left out."""
        sizes = {layer.digest: layer.size for layer in layers}
        packs: dict[Digest, StoredPack] = {}
        for place in dict.fromkeys(places):
            stored = self._source.read_range(place.pack, place.index_offset, place.index_length)
            index = PackIndex.parse(stored, place.index_offset)
            if not index.has_groups:
                packs[place.pack] = StoredPack(place, sizes.get(place.pack, 0), index, self._source)
        return packs

    def _write(
        self, packs: Mapping[Digest, StoredPack], homes: Mapping[Digest, StoredPack], level: int, temporary: Path | None
    ) -> tuple[PackPlace, int]:
        copiers = {
            digest: PackCopier(pack, [chunk for chunk, home in homes.items() if home is pack]) for digest, pack in packs.items()
        }

        def read(digest: Digest) -> bytes:
            chunk = copiers[homes[digest].place.pack].read(digest)
            return decode_chunk(chunk.codec, chunk.data, chunk.raw_length)

        def progress(done: int) -> None:
            self._report(Progress("read", f"{len(homes)} chunks of the profile", done, len(homes)))

        try:
            with tempfile.TemporaryFile(dir=temporary, prefix="puzzlefs-") as file:
                pack = write_profile_pack(file, list(homes), read, level=level, progress=progress)
                file.seek(0)
                self._put(Descriptor(MEDIA_TYPE_PACK, pack.place.pack, pack.size), file)
        except OSError as error:
            raise FailedPreconditionError(
                f"cannot write a pack in {temporary or tempfile.gettempdir()}: {error.strerror or error}; set TMPDIR"
            ) from None
        return pack.place, pack.size

    def _metadata(
        self,
        layer: Descriptor,
        said: MetadataLayer,
        packs: Mapping[Digest, StoredPack],
        place: PackPlace,
        source_name: str | None,
    ) -> Descriptor:
        """Store a metadata layer: the same message, compressed harder, since every start waits for it."""
        with self._source.open_blob(layer) as stream:
            message = hold_compressed(stream, METADATA_MAX)
        whole = message.size <= WHOLE_MAX
        blob = compress(message.to_bytes(), LEVEL) if whole else b"".join(compress_parts(message.parts(), message.size, LEVEL))
        places = (*(kept for kept in said.packs if kept.pack in packs), place)
        changed = replace(said, metadata=sha256(blob), packs=places, profile=place.pack, source=source_name or said.source)
        annotations = {key: value for key, value in layer.annotations.items() if key not in said.annotations()}
        described = Descriptor(MEDIA_TYPE_METADATA, changed.metadata, len(blob), annotations | changed.annotations())
        self._put(described, io.BytesIO(blob))
        return described

    def copy_manifest(self, entry: Descriptor) -> None:
        """Store another image of the index as it is."""
        if self._source is self._destination:
            return
        _, data = self._source.manifest(to_text(entry.digest))
        manifest = parse_manifest(data, to_text(entry.digest))
        for blob in (manifest.config, *manifest.layers):
            self._copy(blob)
        self._destination.put_manifest(replace(entry, annotations={}, platform=None), data, None)

    def _copy(self, blob: Descriptor) -> None:
        if self._source is self._destination or self._destination.has_blob(blob.digest):
            return
        with self._source.open_blob(blob) as data:
            self._put(blob, data)

    def _put(self, blob: Descriptor, data: BinaryIO) -> None:
        name = to_text(blob.digest)
        self._report(Progress("push", name, 0, blob.size))
        self._destination.put_blob(blob, data)
        self._report(Progress("push", name, blob.size, blob.size))


def _homes(packs: Mapping[Digest, StoredPack], profile: Sequence[Digest]) -> dict[Digest, StoredPack]:
    """For each chunk of `profile`, in its order, the pack that has it; those that none has are left out."""
    homes: dict[Digest, StoredPack] = {}
    for digest in profile:
        pack = next((pack for pack in packs.values() if pack.index.find(digest) is not None), None)
        if pack is not None:
            homes[digest] = pack
    return homes
