"""Writes a directory as a local image: an OCI layout as upstream's builder makes it, with our cutting and with times.

One blob a chunk. With compression a chunk is stored in zstd's seekable format where that is smaller, and named by its stored
bytes; the fs-verity digest is always that of the blob, which upstream gets wrong where a chunk stays raw.
"""

from __future__ import annotations

import hashlib
import heapq
import io
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain, islice
from operator import attrgetter
from pathlib import Path
from threading import Lock
from typing import Any

from snapshotter.build.chunk import CutChunk
from snapshotter.build.content import build_layer, layer_from_directory
from snapshotter.build.delta import delta
from snapshotter.build.digesttable import DigestTable
from snapshotter.build.documents import describe, parse_manifest
from snapshotter.build.encoder import ParallelEncoder
from snapshotter.build.image import Options
from snapshotter.build.inodelist import InodeList
from snapshotter.build.mtimes import Retime, keep
from snapshotter.build.progress import Report, silent
from snapshotter.build.readmessage import ReadMessage, hold, pieces
from snapshotter.build.segments import SegmentFiles
from snapshotter.build.shelf import Shelf
from snapshotter.build.veritytable import VerityTable
from snapshotter.errors import CorruptError, InvalidError, NotFoundError
from snapshotter.format import codec
from snapshotter.format.compression import seekable
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.format.message import Message, MessageStream, Room
from snapshotter.format.model import CHUNK_MAX, Inode
from snapshotter.format.rootfs import Rootfs
from snapshotter.format.verity import DIGEST_SIZE, VerityHasher, verity_digest
from snapshotter.format.writer import build
from snapshotter.registry.base import Descriptor, ImageStore, Layout, NamingStore, WritableLayout
from snapshotter.registry.documents import OCI_MANIFEST, canonical_json, descriptor_to_json, is_index
from snapshotter.registry.platforms import Platform

ROOTFS_TYPE = "application/vnd.puzzlefs.image.rootfs.v1"
FILEDATA_TYPE = "application/vnd.puzzlefs.image.filedata.v1"
FILEDATA_ZSTD_TYPE = FILEDATA_TYPE + "+zstd"
VERITY_ANNOTATION = "io.puzzlefsoci.puzzlefs.puzzlefs_verity_root_hash"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"

_DESCRIPTORS = 256

MESSAGE_MAX = 1 << 30
"""Largest metadata message that is read, in bytes: some five million inodes."""


@dataclass(frozen=True, slots=True)
class BuiltLayout:
    """The manifest of a local image, and its fs-verity digest, by which the image is mounted and pinned."""

    manifest: Descriptor
    verity: bytes


def build_layout(
    tree: str | bytes | Path,
    layout: WritableLayout,
    tag: str,
    *,
    base: str | None = None,
    compress: bool = False,
    retime: Retime = keep,
    options: Options | None = None,
    report: Report = silent,
) -> BuiltLayout:
    """Build the directory `tree` into `layout` under `tag`. The tag is set when everything else is in place.

    `base` is the tag of a local image in `layout` over which the tree is stored, as one more metadata layer (`delta.delta`).
    `retime` decides the files' times.

    Raises:
        NotFoundError, InvalidError, FailedPreconditionError: `tree` does not exist, is no directory, cannot be read, or
            changes meanwhile; there is no image `base`.
        CorruptError: the image `base` is corrupt.
        UnavailableError: see `ImageStore`.
    """
    chosen = options or Options()
    below = read_rootfs(layout, base, chosen.temporary) if base is not None else None
    chunks = LayoutChunks(layout, compress=compress)
    with ExitStack() as stack:
        shelf = stack.enter_context(closing(Shelf(chosen.temporary)))
        if below is not None:
            stack.callback(below.close)
        with ParallelEncoder(chunks.encode, chunks.take, chosen.cutting.longest, chosen.workers) as encoder:
            root = layer_from_directory(tree, encoder, chosen.cutting, report, shelf)
        retime(root, shelf.added)
        shelf.settle()
        room = SegmentFiles(chosen.temporary)
        descriptors: Iterable[Descriptor]
        if below is None:
            built = build_layer(root, chunks.verity, room)
            message, descriptors = built.message, chunk_descriptors(built.chunks, chunks.size, compressed=compress)
        else:
            layer = stack.enter_context(closing(delta(root, below, chosen.temporary)))
            message, descriptors = _over(below, layer, layout, chunks, room)
    del root
    return publish_layout(layout, tag, message, descriptors)


def _over(
    below: Rootfs, new: InodeList, layout: Layout, chunks: LayoutChunks, room: Room
) -> tuple[Message, Iterator[Descriptor]]:
    """The message of the image `below` with the layer `new` over it, and the descriptors of all chunks that its files need."""
    layers: list[Collection[Inode]] = [*below.stored()]
    if len(new):
        layers.insert(0, new)
    if len(layers) > codec.LAYERS_MAX:
        raise InvalidError(f"the image has {len(layers) - 1} metadata layers already; build it anew, without a base layer")
    needed = DigestTable()
    compressed = bytearray()
    for inode in _shown(new, below):
        for chunk in inode.chunks:
            if needed.add(chunk.digest):
                compressed.append(chunk.compressed)
    sizes = array("I")
    verity = VerityTable()
    for digest, is_compressed in zip(needed, compressed, strict=True):
        found = chunks.stored(digest)
        if found is None:
            # What upstream's program recorded for a chunk that it did not compress may be wrong.
            found = _stored_chunk(layout, digest, below.verity(digest) if is_compressed else None)
        size, recorded = found
        sizes.append(size)
        verity.put(digest, recorded)
    message = build(list(map(len, layers)), layers, len(verity), verity.pairs(), room=room)
    kinds = (FILEDATA_ZSTD_TYPE if is_compressed else FILEDATA_TYPE for is_compressed in compressed)
    return message, map(Descriptor, kinds, needed, sizes)


def _shown(new: Iterable[Inode], below: Rootfs) -> Iterator[Inode]:
    """The inodes of the image `below` with `new` over it, by number; whiteouts too."""
    last = -1
    for inode in heapq.merge(new, below.inodes(), key=attrgetter("ino")):
        if inode.ino != last:
            yield inode
        last = inode.ino


def _stored_chunk(layout: Layout, digest: Digest, recorded: bytes | None) -> tuple[int, bytes]:
    """Size and fs-verity digest of a chunk of the base, which is read unless the digest is known."""
    size = layout.blob_size(digest)
    if size is None:
        raise NotFoundError(f"{layout.name}: chunk {to_text(digest)} of the base layer is missing")
    if size > CHUNK_MAX:
        raise CorruptError(f"{layout.name}: chunk {to_text(digest)} has {size} bytes; at most {CHUNK_MAX} are accepted")
    if recorded is not None:
        return size, recorded
    with layout.open_blob(Descriptor("", digest, size)) as stream:
        return size, verity_digest(stream.read())


def read_rootfs(layout: ImageStore, reference: str, temporary: Path | None = None) -> Rootfs:
    """The metadata of the local image `reference`, checked against its digests; to be closed. `temporary` as `hold` has it.

    Raises what `read_message` and `Rootfs.open` raise.
    """
    descriptor, data = layout.manifest(reference)
    return Rootfs.open(read_message(layout, descriptor, data, f"{layout.name}:{reference}", temporary).data)


def read_message(
    layout: ImageStore, descriptor: Descriptor, data: bytes, what: str, temporary: Path | None = None
) -> ReadMessage:
    """The metadata message of the local image whose manifest is `data`; `what` names it in errors, `temporary` is `hold`'s.

    Raises:
        InvalidError: it is no local image. NotFoundError: its metadata is missing.
        CorruptError: its metadata does not match its digests.
        FailedPreconditionError: there is no room for it.
    """
    if is_index(descriptor.media_type):
        raise InvalidError(f"{what} is an index, not an image that puzzlefs build made")
    layers = parse_manifest(data, what, local=True).layers
    if not layers or layers[0].media_type != ROOTFS_TYPE:
        raise InvalidError(f"{what} is not an image that puzzlefs build made; for an ordinary image use puzzlefs convert")
    rootfs = layers[0]
    if rootfs.size > MESSAGE_MAX:
        raise CorruptError(f"{what}: its metadata has {rootfs.size} bytes; at most {MESSAGE_MAX} are read")
    with layout.open_blob(rootfs) as stream:
        message = hold(pieces(stream), temporary)
    declared = rootfs.annotations.get(VERITY_ANNOTATION)
    if declared is not None and declared.lower() != message.verity().hex():
        raise CorruptError(f"{what}: the fs-verity digest of its metadata is not the one that its manifest states")
    return message


def chunk_descriptors(chunks: Iterable[Digest], size: Callable[[Digest], int], *, compressed: bool) -> Iterator[Descriptor]:
    """A descriptor for each of `chunks`, whose stored sizes are known; `compressed`: the build's chunks were to be."""
    kind = FILEDATA_ZSTD_TYPE if compressed else FILEDATA_TYPE
    return (Descriptor(kind, digest, size(digest)) for digest in chunks)


def publish_layout(layout: ImageStore, tag: str, message: Message, chunks: Iterable[Descriptor]) -> BuiltLayout:
    """Store the metadata `message` of an image whose `chunks` are stored, its manifest, and the tag, in this order."""
    name, verity = hashlib.sha256(), VerityHasher()
    for part in message.parts():
        name.update(part)
        verity.update(part)
    said = {VERITY_ANNOTATION: verity.digest().hex()}
    rootfs = Descriptor(ROOTFS_TYPE, Digest(name.digest()), message.size, said)
    layout.put_blob(rootfs, io.BufferedReader(MessageStream(message)))
    layout.put_blob(describe(EMPTY_TYPE, b"{}"), io.BytesIO(b"{}"))
    content = _manifest(chain([rootfs], chunks))
    here = Platform.of_this_machine()
    manifest = describe(OCI_MANIFEST, content, platform={"architecture": here.architecture, "os": here.os})
    layout.put_manifest(manifest, content, tag)
    return BuiltLayout(manifest, verity_digest(content))


def _manifest(layers: Iterator[Descriptor]) -> bytes:
    """The manifest in canonical form. A descriptor takes five times its text in memory: they are written a few at a time."""
    config: dict[str, Any] = {**descriptor_to_json(describe(EMPTY_TYPE, b"{}")), "data": "e30="}
    before, _, after = canonical_json({"schemaVersion": 2, "config": config, "layers": []}).partition(b"[]")
    text = io.BytesIO()
    text.write(before + b"[")
    following = b""
    while some := list(map(descriptor_to_json, islice(layers, _DESCRIPTORS))):
        text.write(following + canonical_json(some)[1:-1])
        following = b","
    text.write(b"]" + after)
    return text.getvalue()


class LayoutChunks:
    """Stores each chunk as a blob; what `ParallelEncoder` needs of it. 85 bytes a chunk are in memory, with `compress` 135."""

    def __init__(self, layout: NamingStore, *, compress: bool) -> None:
        """With `compress`, chunks are stored in zstd's seekable format where that is smaller."""
        self._layout = layout
        self._compress = compress
        self._lock = Lock()  # of whoever adds a row
        # The blobs, and what is known of each.
        self._blobs = DigestTable()
        self._verity = bytearray()
        self._sizes = array("I")
        # With `compress`, the chunks by their raw bytes, and the number of each one's blob; else a chunk's blob has its name.
        self._raw = DigestTable() if compress else self._blobs
        self._blob_of = array("I")

    def encode(self, raw: bytes) -> CutChunk:
        """Called from several threads: a blob may take its time to reach the disk."""
        if not self._compress:
            digest = self._layout.put_data(raw)
            if digest not in self._blobs:
                self._add(digest, digest, len(raw), self.recorded(raw, raw))
            return CutChunk(digest, len(raw))
        name = sha256(raw)
        number = self._raw.find(name)
        if number is not None:
            digest = self._blobs[self._blob_of[number]]
            return CutChunk(digest, len(raw), digest != name)
        encoded = seekable(raw)
        stored = encoded if len(encoded) < len(raw) else raw
        digest = self._layout.put_data(stored)
        self._add(name, digest, len(stored), self.recorded(stored, encoded))
        return CutChunk(digest, len(raw), digest != name)

    def _add(self, name: Digest, blob: Digest, size: int, verity: bytes) -> None:
        with self._lock:
            number = self._blobs.find(blob)
            if number is None:
                number = len(self._blobs)
                # The name last: who finds it finds the rest.
                self._sizes.append(size)
                self._verity += verity
                self._blobs.add(blob)
            if self._raw is not self._blobs and name not in self._raw:
                self._blob_of.append(number)
                self._raw.add(name)

    def stored(self, blob: Digest) -> tuple[int, bytes] | None:
        """Size and recorded fs-verity digest of a blob; None if this did not store it."""
        number = self._blobs.find(blob)
        return None if number is None else (self._sizes[number], self._verity_at(number))

    def size(self, blob: Digest) -> int:
        """The size of a blob that this stored."""
        return self._sizes[self._number(blob)]

    def verity(self, blob: Digest) -> bytes:
        """The recorded fs-verity digest of a blob that this stored."""
        return self._verity_at(self._number(blob))

    def verities(self) -> Iterator[tuple[Digest, bytes]]:
        """Every blob with its recorded fs-verity digest."""
        for number, blob in enumerate(self._blobs):
            yield blob, self._verity_at(number)

    def _number(self, blob: Digest) -> int:
        number = self._blobs.find(blob)
        if number is None:
            raise ValueError(f"chunk {to_text(blob)} was not stored")
        return number

    def _verity_at(self, number: int) -> bytes:
        return bytes(self._verity[number * DIGEST_SIZE : (number + 1) * DIGEST_SIZE])

    def recorded(self, stored: bytes, encoded: bytes) -> bytes:
        """The fs-verity digest to record for a chunk that is `stored`, and was `encoded` before it was known to be smaller."""
        return verity_digest(stored)

    def take(self, chunk: CutChunk) -> None:
        """Called with each chunk in the order of the data, repeats included. Nothing is left to do."""
