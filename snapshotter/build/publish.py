"""Stores built layers as an image: plans and writes the packs, puts the blobs, and makes the manifest."""

from __future__ import annotations

import hashlib
import io
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any, BinaryIO

from snapshotter.build.digesttable import DigestTable
from snapshotter.build.documents import OCI_CONFIG, describe, new_config, new_manifest
from snapshotter.build.pack import PackLayout, PackStream, digest_of, lay_out, plan_packs
from snapshotter.build.packwriter import write_pack
from snapshotter.build.progress import Progress, Report
from snapshotter.build.reuse import KnownPacks, StoredPack
from snapshotter.build.rewrite import PackCopier
from snapshotter.build.spool import ChunkSpool, SpooledChunk
from snapshotter.format.annotations import MEDIA_TYPE_METADATA, MEDIA_TYPE_PACK, MetadataLayer, PackLayer
from snapshotter.format.compression import METADATA_LEVEL, compress, compress_parts
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.format.message import Message
from snapshotter.format.verity import VerityHasher, verity_digest
from snapshotter.registry.base import Descriptor, ImageStore, NamingStore

PUTS = 2
"""Packs that are stored at a time."""

WHOLE_MAX = 16 << 20
"""Messages that are not longer, in bytes, are compressed from memory, in one piece; longer ones as they are read, which zstd
may give other bytes for (docs/format.md, section 5)."""

_BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class SealedMessage:
    """A layer's metadata ready to be stored: the zstd-compressed message, and digest and fs-verity digest of the message."""

    stored: bytes
    diff_id: Digest
    verity: bytes


def seal(message: Message) -> SealedMessage:
    """Compress and name a layer's message. The same message gives the same bytes whatever the options of a build are."""
    if message.size <= WHOLE_MAX:
        data = message.to_bytes()
        return SealedMessage(compress(data, METADATA_LEVEL), sha256(data), verity_digest(data))
    name, verity = hashlib.sha256(), VerityHasher()

    def passing() -> Iterator[bytes | memoryview]:
        for part in message.parts():
            name.update(part)
            verity.update(part)
            yield part

    stored = b"".join(compress_parts(passing(), message.size, METADATA_LEVEL))
    return SealedMessage(stored, Digest(name.digest()), verity.digest())


@dataclass(frozen=True, slots=True)
class PublishedLayer:
    """A layer to be stored: its chunks in walk order, each once, and its metadata, which may take its time to be ready."""

    chunks: Sequence[Digest]
    metadata: Callable[[], SealedMessage]


@dataclass(slots=True)
class Figures:
    """What was stored: bytes put that were not there, and the packs of the images, each once."""

    pushed: int = 0
    packs_new: set[Digest] = field(default_factory=set)
    packs_reused: set[Digest] = field(default_factory=set)


class Publisher:
    """Stores images in one repository, with chunks out of `spool` and of the packs in `known`.

    Packs that it writes are added to `known` when the next platform of the image is published.
    """

    def __init__(
        self,
        store: ImageStore,
        known: KnownPacks,
        spool: ChunkSpool,
        report: Report,
        *,
        source: str | None = None,
    ) -> None:
        """`source` is the reference that goes into the annotations."""
        self._store = store
        self._known = known
        self._spool = spool
        self._report = report
        self._source = source
        self._written: list[StoredPack] = []
        self.figures = Figures()
        self._counting = Lock()

    def publish(self, layers: Sequence[PublishedLayer], config: Mapping[str, Any], annotations: Mapping[str, str]) -> bytes:
        """Put the blobs of an image with these layers and this (source) configuration; its manifest, which is not put.

        Raises what `ImageStore`, `rewrite.PackCopier` and `ChunkSpool.keep` raise, and what making a layer's metadata does.
        """
        while self._written:
            self._known.add(self._written.pop(0))
        with ThreadPoolExecutor(PUTS, "put-pack") as putter:
            storing, holders = self._store_packs(layers, putter)
            # What is left of the metadata is made while the last packs are on their way.
            messages = [layer.metadata() for layer in layers]
            packs = [each.result() for each in storing]
        self._written = list(packs)
        described = []
        for layer, message in zip(layers, messages, strict=True):
            # Of an image with one layer every pack has chunks of it.
            numbers = range(len(packs)) if len(layers) == 1 else holders.of(layer.chunks)
            places = tuple(packs[number].place for number in numbers)
            said = MetadataLayer(sha256(message.stored), message.diff_id, message.verity, places, self._source)
            blob = Descriptor(MEDIA_TYPE_METADATA, said.metadata, len(message.stored), said.annotations())
            self._put(blob, io.BytesIO(message.stored))
            described.append(blob)
        for pack in packs:
            digest = pack.place.pack
            described.append(Descriptor(MEDIA_TYPE_PACK, digest, pack.size, PackLayer(digest).annotations()))
        content = new_config(config, [message.diff_id for message in messages], [pack.place.pack for pack in packs])
        blob = describe(OCI_CONFIG, content)
        self._put(blob, io.BytesIO(content))
        return new_manifest(blob, described, annotations)

    def _store_packs(
        self, layers: Sequence[PublishedLayer], putter: ThreadPoolExecutor
    ) -> tuple[list[Future[StoredPack]], _Holders]:
        """The image's packs, in order, each of which is in the destination when it is there; and which of them has which chunk.

        `PUTS` of them are on their way while the next one is laid out.
        """
        plan = plan_packs([layer.chunks for layer in layers], self._find)
        holders = _Holders(self._known, plan.kept)
        packs: list[Future[StoredPack]] = []
        for number in plan.kept:
            self._keep(self._known.packs[number])
            packs.append(Future())
            packs[-1].set_result(self._known.packs[number])
        for number, chunks in enumerate(plan.new, len(plan.kept)):
            holders.add(chunks, number)
            self._fetch(chunks)
            layout = lay_out(chunks, self._stored)
            if len(packs) - len(plan.kept) >= PUTS:
                packs[-PUTS].result()
            packs.append(putter.submit(self._store_pack, f"pack {number}", layout))
        return packs, holders

    def _find(self, digest: Digest) -> tuple[int | None, int]:
        found = self._known.find(digest)
        return (None, self._stored(digest).stored_length) if found is None else (found[0], found[1].stored_length)

    def _stored(self, digest: Digest) -> SpooledChunk:
        place = self._spool.place(digest)
        if place is None:
            raise ValueError(f"chunk {to_text(digest)} was not kept")
        return place

    def _keep(self, pack: StoredPack) -> None:
        digest = pack.place.pack
        if digest not in self.figures.packs_new:
            self.figures.packs_reused.add(digest)
        if pack.store is self._store or self._store.has_blob(digest):
            return
        blob = Descriptor(MEDIA_TYPE_PACK, digest, pack.size)
        with pack.store.open_blob(blob) as data:
            self._put(blob, data)

    def _fetch(self, chunks: Sequence[Digest]) -> None:
        """Get the chunks of a new pack that are in packs which are given up into the spool: they are read more than once."""
        wanted: dict[int, list[Digest]] = {}
        for digest in chunks:
            found = self._known.find(digest)
            if found is not None:
                wanted.setdefault(found[0], []).append(digest)
        for number, digests in wanted.items():
            copier = PackCopier(self._known.packs[number], digests)
            for digest in digests:
                chunk = copier.read(digest)
                self._spool.keep(digest, chunk.codec, chunk.raw_length, chunk.data)

    def _store_pack(self, name: str, layout: PackLayout) -> StoredPack:
        """Store a new pack, which is called `name` until its digest is known. Where that must be told first, the pack is read
        twice, and never written elsewhere."""
        if isinstance(self._store, NamingStore):
            self._report(Progress("push", name, 0, layout.size))
            digest, is_new = self._store.put_made(partial(write_pack, layout, self._spool.fileno()))
            self._count(layout.size if is_new else 0)
            self._report(Progress("push", name, layout.size, layout.size))
        else:
            read = self._spool.readinto
            digest = digest_of(layout, read)
            with io.BufferedReader(PackStream(layout, read), _BUFFER) as data:
                self._put(Descriptor(MEDIA_TYPE_PACK, digest, layout.size), data)
        self.figures.packs_new.add(digest)
        return StoredPack(layout.named(digest), layout.size, layout.index, self._store)

    def _put(self, blob: Descriptor, data: BinaryIO) -> None:
        name = to_text(blob.digest)
        self._report(Progress("push", name, 0, blob.size))
        self._count(blob.size if self._store.put_blob(blob, data) else 0)
        self._report(Progress("push", name, blob.size, blob.size))

    def _count(self, size: int) -> None:
        with self._counting:
            self.figures.pushed += size


class _Holders:
    """Which of an image's packs has a chunk: the new pack it was put into, or the one of the `known` packs that is `kept`."""

    def __init__(self, known: KnownPacks, kept: Sequence[int]) -> None:
        self._known = known
        self._order = {number: place for place, number in enumerate(kept)}
        self._added: list[tuple[Iterable[Digest], int]] = []
        self._new = DigestTable()
        self._places = array("H")

    def add(self, chunks: Iterable[Digest], place: int) -> None:
        """The image's pack number `place` is a new one, of `chunks`."""
        self._added.append((chunks, place))

    def of(self, chunks: Iterable[Digest]) -> list[int]:
        """The numbers of the packs that have `chunks`, ascending."""
        while self._added:
            added, place = self._added.pop(0)
            for digest in added:
                if self._new.add(digest):
                    self._places.append(place)
        return sorted(set(map(self._place, chunks)))

    def _place(self, digest: Digest) -> int:
        number = self._new.find(digest)
        if number is not None:
            return self._places[number]
        found = self._known.find(digest)
        if found is None:
            raise ValueError(f"chunk {to_text(digest)} is in no pack of the image")
        return self._order[found[0]]
