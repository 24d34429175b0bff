"""Checks an image: everything that can be checked of it, to the last byte, and says precisely what is wrong.

Digests of all blobs and what annotations and configuration say of them, the metadata's rules, fs-verity digests, the indexes of
packs, and that every chunk can be reached, decodes, and is what its name says. A failure of one thing does not end the check
of the others; only what cannot be reached now does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

from snapshotter.build.contents import ManifestOf, files_with, manifests, metadata_layer, pack_index
from snapshotter.build.documents import diff_ids
from snapshotter.build.layout import FILEDATA_ZSTD_TYPE, read_message
from snapshotter.build.packcheck import BadChunks, WholeBlob, check_chunks
from snapshotter.build.progress import Progress, Report, silent
from snapshotter.build.readmessage import ReadMessage
from snapshotter.build.reuse import read_json
from snapshotter.build.rules import FINDINGS_MAX, Rules, check
from snapshotter.build.segments import SegmentFiles
from snapshotter.errors import CorruptError, InvalidError, NotFoundError
from snapshotter.format.annotations import MEDIA_TYPE_PACK, MetadataLayer, PackLayer, PackPlace
from snapshotter.format.annotations import parse as puzzlefs_layer
from snapshotter.format.compression import decode_seekable
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.format.model import CHUNK_MAX
from snapshotter.format.pack import FOOTER_SIZE, PackIndex, parse_footer
from snapshotter.format.rootfs import Rootfs
from snapshotter.format.verity import verity_digest
from snapshotter.registry.base import Descriptor, ImageStore, Layout

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be. A note is none of the data's: nothing is wrong with what a reader gets."""

    severity: Literal["error", "note"]
    image: str
    problem: str


@dataclass(slots=True)
class Verified:
    """What was checked, and what was found."""

    images: int = 0
    blobs: int = 0
    bytes: int = 0
    inodes: int = 0
    chunks: int = 0
    errors: int = 0
    findings: list[Finding] = field(default_factory=list)


def verify(store: ImageStore, reference: str, report: Report = silent) -> Verified:
    """Check the image `reference` of `store`, every platform of it.

    Raises:
        NotFoundError: there is no such image. InvalidError: it is no PuzzleFS image.
        CorruptError: its manifest is none. UnavailableError: the place cannot be asked now.
    """
    result = Verified()
    for image in manifests(store, reference):
        result.images += 1
        _Check(store, image, result, report).run()
    return result


@dataclass(frozen=True, slots=True)
class _Layer:
    """A metadata layer that could be read, and what was found in it."""

    descriptor: Descriptor
    described: MetadataLayer
    rules: Rules


class _Check:
    """The check of one image."""

    def __init__(self, store: ImageStore, image: ManifestOf, result: Verified, report: Report) -> None:
        self._store = store
        self._image = image
        self._result = result
        self._report = report
        self._total = sum(layer.size for layer in image.manifest.layers)
        self._done = 0
        self._layers: list[_Layer] = []

    def run(self) -> None:
        self._read_whole(self._image.manifest.config, "the configuration")
        if self._image.local:
            self._local()
        else:
            self._packed()

    # Local images.

    def _local(self) -> None:
        image = self._image
        try:
            message = read_message(self._store, image.descriptor, image.data, image.name)
            Rootfs.open(message.data).close()
        except (CorruptError, NotFoundError) as error:
            self._error(str(error))
            return
        self._count(message.size)
        rules = self._rules(message, "")
        del message
        described = {layer.digest: layer for layer in image.manifest.layers[1:]}
        # What upstream's program records for a chunk that it could not compress is the digest of its compressed form.
        zstd = any(compressed for _, compressed, _ in rules.needs()) or any(
            layer.media_type == FILEDATA_ZSTD_TYPE for layer in described.values()
        )
        bad = BadChunks()
        sizes_wrong = verity_wrong = 0
        unneeded = (
            (digest, zstd, 0)
            for digest in described
            if not rules.end(digest, compressed=True) and not rules.end(digest, compressed=False)
        )
        for digest, compressed, end in chain(rules.needs(), unneeded):
            try:
                stored, raw = self._local_chunk(digest, compressed, strict=end > 0)
            except (CorruptError, NotFoundError) as error:
                bad.add(digest, str(error))
                continue
            problem = f"has {len(raw)} bytes, of which files take more" if len(raw) < end else ""
            recorded = rules.chunks.verity(digest)
            if recorded is not None and recorded != verity_digest(stored):
                if zstd and not compressed:
                    verity_wrong += 1
                else:
                    problem = "has another fs-verity digest than the metadata records"
            size = described[digest].size if digest in described else len(stored)
            if size == len(raw) != len(stored):
                sizes_wrong += 1
            elif size != len(stored):
                problem = f"has {len(stored)} bytes, its descriptor says {size}"
            if problem:
                bad.add(digest, problem)
            self._result.chunks += 1
            self._count(len(stored))
        self._bad_chunks(bad)
        if verity_wrong:
            self._note(
                f"{verity_wrong} uncompressed chunks have the fs-verity digest of a compressed form (as upstream's program"
                " records it): mounting with --digest goes by their names"
            )
        if sizes_wrong:
            self._note(f"the descriptors of {sizes_wrong} compressed chunks state their raw sizes, as upstream's release does")

    def _local_chunk(self, digest: Digest, compressed: bool, *, strict: bool) -> tuple[bytes, bytes]:
        """A chunk's blob, checked, and the raw bytes."""
        store = self._store
        if not isinstance(store, Layout):
            raise NotFoundError("is not in a local layout")
        size = store.blob_size(digest)
        if size is None:
            raise NotFoundError("is missing")
        if size > CHUNK_MAX:
            raise CorruptError(f"has {size} bytes; at most {CHUNK_MAX} are accepted")
        stored = store.read_range(digest, 0, size)
        if sha256(stored) != digest:
            raise CorruptError(f"holds something else: its bytes have the digest {to_text(sha256(stored))}")
        if not compressed:
            return stored, stored
        try:
            return stored, decode_seekable(stored, CHUNK_MAX)
        except CorruptError:
            if strict:
                raise
            return stored, stored  # listed by the manifest alone: whether it is compressed is nowhere said

    # Images in our form.

    def _packed(self) -> None:
        image = self._image
        packs: dict[Digest, Descriptor] = {}
        places: dict[Digest, PackPlace] = {}
        expected: list[Digest | None] = []
        ours = False
        for layer in image.manifest.layers:
            try:
                described = puzzlefs_layer(layer.annotations)
            except InvalidError as error:
                self._error(f"layer {to_text(layer.digest)}: {error}")
                expected.append(None)
                ours = True
                continue
            ours = ours or described is not None
            if isinstance(described, MetadataLayer):
                expected.append(described.diff_id)
                places |= {place.pack: place for place in described.packs}
                self._metadata(layer, described)
            elif isinstance(described, PackLayer) or layer.media_type == MEDIA_TYPE_PACK:
                expected.append(layer.digest)
                packs[layer.digest] = layer
                if described is None or described.pack != layer.digest:
                    self._error(f"pack {to_text(layer.digest)}: its annotations name another one, or none")
            else:
                expected.append(None)
                self._read_whole(layer, "layer")
        if not ours:
            raise InvalidError(f"{image.name} is not a PuzzleFS image: make one of it with puzzlefs convert")
        self._config(expected)
        for missing in places.keys() - packs.keys():
            self._error(f"pack {to_text(missing)} is named by a metadata layer, and is no layer of the image")
        indexes = {digest: self._pack(layer, places.get(digest)) for digest, layer in packs.items()}
        for checked in self._layers:
            self._reachable(checked, indexes)

    def _metadata(self, layer: Descriptor, described: MetadataLayer) -> None:
        try:
            content = metadata_layer(self._store, layer, described, self._image.name)
        except (CorruptError, NotFoundError) as error:
            self._error(str(error))
            return
        content.rootfs.close()
        self._count(layer.size)
        called = f"metadata layer {to_text(layer.digest)}: "
        if content.message.verity() != described.verity:
            self._error(f"{called}its fs-verity digest is not the one that its annotations state")
        self._layers.append(_Layer(layer, described, self._rules(content.message, called)))

    def _config(self, expected: list[Digest | None]) -> None:
        image = self._image
        try:
            document = read_json(self._store, image.manifest.config, f"the configuration of {image.name}")
            listed = diff_ids(document, len(expected), image.name)
        except NotFoundError:
            return  # said already
        except CorruptError as error:
            self._error(str(error))
            return
        for number, (one, other) in enumerate(zip(expected, listed, strict=True), 1):
            if one is not None and one != other:
                self._error(f"the configuration gives layer {number} the diff ID {to_text(other)}; it has {to_text(one)}")

    def _pack(self, layer: Descriptor, place: PackPlace | None) -> PackIndex | None:
        """Check a pack, all of its chunks included; its index."""
        called = f"pack {to_text(layer.digest)}"
        try:
            footer = (
                self._store.read_range(layer.digest, layer.size - FOOTER_SIZE, FOOTER_SIZE) if layer.size > FOOTER_SIZE else b""
            )
            offset, length = parse_footer(footer, layer.size)
            if place is not None and (place.index_offset, place.index_length) != (offset, length):
                self._error(
                    f"{called}: the annotations place its index at {place.index_offset}+{place.index_length},"
                    f" it lies at {offset}+{length}"
                )
            index = pack_index(self._store, PackPlace(layer.digest, offset, length))
        except (CorruptError, NotFoundError) as error:
            self._error(f"{called}: {error}")
            self._read_whole(layer, "pack")
            return None
        tables = [
            checked.rules.chunks
            for checked in self._layers
            if any(named.pack == layer.digest for named in checked.described.packs)
        ]
        bad = BadChunks()
        stream = WholeBlob(self._store, layer, lambda size: self._count(size, blobs=0))
        try:
            self._result.chunks += check_chunks(stream, index, tables, bad)
            digest = stream.digest()
            if digest != layer.digest:
                self._error(f"{called} is corrupt: its content has the digest {to_text(digest)}")
        except (CorruptError, NotFoundError) as error:
            self._error(str(error))
        self._result.blobs += 1
        self._bad_chunks(bad, f" in {called}")
        return index

    def _reachable(self, layer: _Layer, indexes: Mapping[Digest, PackIndex | None]) -> None:
        """Whether every chunk that the layer needs is in a pack that it names."""
        named = [indexes.get(place.pack) for place in layer.described.packs]
        known = [index for index in named if index is not None]
        if len(known) < len(named):
            return  # what is wrong with the pack was said
        bad = BadChunks()
        for digest, compressed, end in layer.rules.needs():
            found = next((entry for index in known if (entry := index.find(digest)) is not None), None)
            if compressed:
                bad.add(digest, "is named by compressed bytes, which only a local image may do")
            elif found is None:
                bad.add(digest, "is in none of the packs that its layer names")
            elif found.raw_length < end:
                bad.add(digest, f"has {found.raw_length} bytes, of which files take {end}")
        self._bad_chunks(bad)

    # What both have.

    def _rules(self, message: ReadMessage, where: str) -> Rules:
        rules = check(message.data, SegmentFiles())
        self._result.inodes += rules.inodes
        for problem in rules.errors.lines:
            self._error(f"{where}{problem}")
        self._result.errors += rules.errors.count - len(rules.errors.lines)
        for problem in rules.notes.lines:
            self._note(f"{where}{problem}")
        return rules

    def _read_whole(self, blob: Descriptor, what: str) -> None:
        try:
            with self._store.open_blob(blob) as stream:
                while piece := stream.read(_PIECE):
                    self._count(len(piece), blobs=0)
            self._result.blobs += 1
        except (CorruptError, NotFoundError) as error:
            self._error(f"{what}: {error}")

    def _bad_chunks(self, bad: BadChunks, where: str = "") -> None:
        users: dict[Digest, str] = {}
        for rootfs in self._rootfses() if bad.problems else ():
            users = {**files_with(rootfs, set(bad.problems)), **users}
        for digest, problem in bad.problems.items():
            files = f" (of {users[digest]})" if digest in users else ""
            self._error(f"chunk {to_text(digest)}{where}{files} {problem}")
        self._result.errors += bad.more

    def _rootfses(self) -> Iterator[Rootfs]:
        """The metadata of the layers that could be read, read once more: there is rarely need of it, and it may be large."""
        image = self._image
        if image.local:
            yield from _closing(Rootfs.open(read_message(self._store, image.descriptor, image.data, image.name).data))
        for layer in self._layers:
            yield from _closing(metadata_layer(self._store, layer.descriptor, layer.described, image.name).rootfs)

    def _error(self, problem: str) -> None:
        self._result.errors += 1
        self._find("error", problem)

    def _note(self, problem: str) -> None:
        self._find("note", problem)

    def _find(self, severity: Literal["error", "note"], problem: str) -> None:
        if len(self._result.findings) < FINDINGS_MAX:
            problem = problem.removeprefix(f"{self._image.name}: ")
            self._result.findings.append(Finding(severity, self._image.name, problem))

    def _count(self, size: int, *, blobs: int = 1) -> None:
        self._result.blobs += blobs
        self._result.bytes += size
        self._done += size
        self._report(Progress("read", self._image.name, min(self._done, self._total), self._total))


def _closing(rootfs: Rootfs) -> Iterator[Rootfs]:
    try:
        yield rootfs
    finally:
        rootfs.close()
