"""Stores built layers as an image: plans and writes the packs, puts the blobs, and makes the manifest."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from snapshotter.build.content import BuiltLayer
from snapshotter.build.documents import OCI_CONFIG, describe, new_config, new_manifest
from snapshotter.build.pack import StoredChunk, plan_packs, write_pack
from snapshotter.build.progress import Progress, Report
from snapshotter.build.reuse import KnownPacks, StoredPack
from snapshotter.build.rewrite import PackCopier
from snapshotter.build.spool import ChunkSpool
from snapshotter.errors import FailedPreconditionError
from snapshotter.format.annotations import MEDIA_TYPE_METADATA, MEDIA_TYPE_PACK, MetadataLayer, PackLayer
from snapshotter.format.compression import METADATA_LEVEL, compress
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.format.verity import verity_digest
from snapshotter.registry.base import Descriptor, ImageStore


@dataclass(frozen=True, slots=True)
class SealedLayer:
    """A layer ready to be stored: the zstd-compressed message, the digest and fs-verity digest of the message itself."""

    stored: bytes
    diff_id: Digest
    verity: bytes
    chunks: Sequence[Digest]


def seal(layer: BuiltLayer) -> SealedLayer:
    """Compress and name a layer's message. The same message gives the same bytes whatever the options of a build are."""
    stored = compress(layer.message, METADATA_LEVEL)
    return SealedLayer(stored, sha256(layer.message), verity_digest(layer.message), layer.chunks)


@dataclass(slots=True)
class Figures:
    """What was stored: bytes put that were not there, and the packs of the images, each once."""

    pushed: int = 0
    packs_new: set[Digest] = field(default_factory=set)
    packs_reused: set[Digest] = field(default_factory=set)


class Publisher:
    """Stores images in one repository, with chunks out of `spool` and of the packs in `known`.

    Packs that it writes are added to `known`, for the next platform of the image.
    """

    def __init__(
        self,
        store: ImageStore,
        known: KnownPacks,
        spool: ChunkSpool,
        report: Report,
        *,
        source: str | None = None,
        temporary: Path | None = None,
    ) -> None:
        """`source` is the reference that goes into the annotations."""
        self._store = store
        self._known = known
        self._spool = spool
        self._report = report
        self._source = source
        self._temporary = temporary
        self.figures = Figures()

    def publish(self, layers: Sequence[SealedLayer], config: Mapping[str, Any], annotations: Mapping[str, str]) -> bytes:
        """Put the blobs of an image with these layers and this (source) configuration; its manifest, which is not put.

        Raises what `ImageStore` and `rewrite.PackCopier` raise, and FailedPreconditionError if a pack cannot be kept for a
        while in the temporary directory.
        """
        packs, holder = self._put_packs(layers)
        described = []
        for layer in layers:
            numbers = sorted({holder[digest] for digest in layer.chunks})
            places = tuple(packs[number].place for number in numbers)
            said = MetadataLayer(sha256(layer.stored), layer.diff_id, layer.verity, places, self._source)
            blob = Descriptor(MEDIA_TYPE_METADATA, said.metadata, len(layer.stored), said.annotations())
            self._put(blob, io.BytesIO(layer.stored))
            described.append(blob)
        for pack in packs:
            digest = pack.place.pack
            described.append(Descriptor(MEDIA_TYPE_PACK, digest, pack.size, PackLayer(digest).annotations()))
        content = new_config(config, [layer.diff_id for layer in layers], [pack.place.pack for pack in packs])
        blob = describe(OCI_CONFIG, content)
        self._put(blob, io.BytesIO(content))
        return new_manifest(blob, described, annotations)

    def _put_packs(self, layers: Sequence[SealedLayer]) -> tuple[list[StoredPack], dict[Digest, int]]:
        """The image's packs, in order, all of them in the destination; and for each chunk, which of them has it."""
        new: dict[Digest, int] = {}
        reused: dict[Digest, tuple[int, int]] = {}
        for layer in layers:
            for digest in layer.chunks:
                found = self._known.find(digest)
                if found is None:
                    new[digest] = self._spool.chunks[digest].stored_length
                else:
                    reused[digest] = (found[0], found[1].stored_length)
        plan = plan_packs([layer.chunks for layer in layers], new, reused)
        packs = [self._known.packs[number] for number in plan.kept]
        order = {number: place for place, number in enumerate(plan.kept)}
        holder = {digest: order[number] for digest, (number, _) in reused.items() if number in order}
        for pack in packs:
            self._keep(pack)
        for chunks in plan.new:
            holder.update(dict.fromkeys(chunks, len(packs)))
            packs.append(self._write(chunks, self._reader(chunks, new)))
        for pack in packs:
            self._known.add(pack)
        return packs, holder

    def _keep(self, pack: StoredPack) -> None:
        digest = pack.place.pack
        if digest not in self.figures.packs_new:
            self.figures.packs_reused.add(digest)
        if pack.store is self._store or self._store.has_blob(digest):
            return
        blob = Descriptor(MEDIA_TYPE_PACK, digest, pack.size)
        with pack.store.open_blob(blob) as data:
            self._put(blob, data)

    def _reader(self, chunks: Sequence[Digest], new: Mapping[Digest, int]) -> Callable[[Digest], StoredChunk]:
        """What reads the chunks of a new pack: out of the spool, or out of packs that are given up."""
        wanted: dict[int, list[Digest]] = {}
        home: dict[Digest, int] = {}
        for digest in chunks:
            found = None if digest in new else self._known.find(digest)
            if found is not None:
                home[digest] = found[0]
                wanted.setdefault(found[0], []).append(digest)
        copiers = {number: PackCopier(self._known.packs[number], digests) for number, digests in wanted.items()}

        def read(digest: Digest) -> StoredChunk:
            number = home.get(digest)
            if number is not None:
                return copiers[number].read(digest)
            place = self._spool.chunks[digest]
            return StoredChunk(place.codec, place.raw_length, self._spool.read(digest))

        return read

    def _write(self, chunks: Sequence[Digest], read: Callable[[Digest], StoredChunk]) -> StoredPack:
        with self._temporary_file() as file:
            pack = write_pack(file, chunks, read)
            file.seek(0)
            self._put(Descriptor(MEDIA_TYPE_PACK, pack.place.pack, pack.size), file)
        self.figures.packs_new.add(pack.place.pack)
        return StoredPack(pack.place, pack.size, pack.index, self._store)

    @contextmanager
    def _temporary_file(self) -> Iterator[BinaryIO]:
        try:
            with tempfile.TemporaryFile(dir=self._temporary, prefix="puzzlefs-") as file:
                yield cast(BinaryIO, file)
        except OSError as error:
            place = self._temporary or tempfile.gettempdir()
            raise FailedPreconditionError(f"cannot write a pack in {place}: {error.strerror or error}; set TMPDIR") from None

    def _put(self, blob: Descriptor, data: BinaryIO) -> None:
        name = to_text(blob.digest)
        self._report(Progress("push", name, 0, blob.size))
        if self._store.put_blob(blob, data):
            self.figures.pushed += blob.size
        self._report(Progress("push", name, blob.size, blob.size))
