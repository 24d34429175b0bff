"""Turns a local image in upstream's layout, whoever built it, into the form that registries and the snapshotter use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace

from snapshotter.build.chunk import CutChunk
from snapshotter.build.content import BuiltLayer, Verity, build_layer
from snapshotter.build.documents import describe
from snapshotter.build.flatten import alone, checked_inodes
from snapshotter.build.image import Converted, Options
from snapshotter.build.layout import read_message
from snapshotter.build.progress import Progress, Report, silent
from snapshotter.build.publish import PublishedLayer, Publisher, seal
from snapshotter.build.readmessage import ReadMessage
from snapshotter.build.reuse import gather
from snapshotter.build.segments import SegmentFiles
from snapshotter.build.shelf import Shelf
from snapshotter.build.spool import ChunkSpool
from snapshotter.build.spoolencoder import SpoolEncoder
from snapshotter.errors import CorruptError, InvalidError, NotFoundError
from snapshotter.format.compression import decode_seekable
from snapshotter.format.digest import Digest, to_text
from snapshotter.format.message import Room
from snapshotter.format.model import CHUNK_MAX, FileChunk
from snapshotter.format.rootfs import Rootfs
from snapshotter.registry.base import Descriptor, ImageStore, Layout
from snapshotter.registry.documents import OCI_MANIFEST
from snapshotter.registry.platforms import Platform

_Renamed = Mapping[tuple[Digest, bool], CutChunk]
"""A chunk of the layout, by its name and whether that is of compressed bytes, and the raw chunk that it is."""


def push(
    layout: ImageStore,
    reference: str,
    destination: ImageStore,
    tag: str | None,
    *,
    destination_name: str | None = None,
    reuse: Sequence[tuple[ImageStore, str]] = (),
    options: Options | None = None,
    report: Report = silent,
) -> Converted:
    """Store the local image `reference` of `layout` in `destination` as `tag`. The other arguments are `image.convert`'s.

    An uncompressed image keeps its metadata message, byte for byte. One whose chunks are named by compressed bytes, or that
    records a wrong fs-verity digest (upstream's does for some), is described anew, several metadata layers as one.

    Raises:
        InvalidError: `layout` is no local layout, or it is not an image in upstream's form.
        CorruptError: it is, but is damaged. NotFoundError: it, or a chunk of it, is missing.
        UnavailableError, FailedPreconditionError: see `ImageStore`; the temporary directory.
    """
    chosen = options or Options()
    if not isinstance(layout, Layout):
        raise InvalidError(f"{layout.name} is no local image; puzzlefs push takes oci:DIR:TAG or oci-archive:FILE:TAG")
    descriptor, data = layout.manifest(reference)
    what = f"{layout.name}:{reference}"
    message = read_message(layout, descriptor, data, what, chosen.temporary)
    known = gather(destination, tag, reuse, lambda text: report(Progress("note", text)))
    with ExitStack() as stack:
        rootfs = Rootfs.open(message.data)
        stack.callback(rootfs.close)
        spool = ChunkSpool(chosen.temporary)
        stack.callback(spool.close)
        encoder = stack.enter_context(SpoolEncoder(spool, chosen.level, known.digests(), workers=chosen.workers))
        renamed = _read_chunks(layout, _wanted(layout, rootfs), encoder, what, report)
        shelf = stack.enter_context(closing(Shelf(chosen.temporary)))
        built = _layer(message, rootfs, renamed, spool.verity, shelf, SegmentFiles(chosen.temporary))
        publisher = Publisher(destination, known, spool, report, source=destination_name)
        manifest = publisher.publish([PublishedLayer(built.chunks, lambda: seal(built.message))], _config(descriptor), {})
    final = describe(OCI_MANIFEST, manifest)
    destination.put_manifest(final, manifest, tag)
    figures = publisher.figures
    stored = sum(layout.blob_size(digest) or 0 for digest, _ in renamed)
    raw = sum(chunk.length for chunk in renamed.values())
    packs_new, packs_reused = len(figures.packs_new), len(figures.packs_reused)
    return Converted(final, 1, 1, stored, raw, figures.pushed, packs_new, packs_reused)


def _wanted(layout: Layout, rootfs: Rootfs) -> Sequence[tuple[Digest, bool]]:
    """The chunks to read, in walk order.

    Upstream's delta images list the fs-verity digests of older layers' chunks that no file needs any more. Where the message
    stays as it is these chunks come along, so that whoever goes through its list finds every one.
    """
    needed = dict.fromkeys((chunk.digest, chunk.compressed) for inode in rootfs.inodes() for chunk in inode.chunks)
    if any(compressed for _, compressed in needed):
        return list(needed)
    rest = [(entry.digest, False) for entry in rootfs.verities() if (entry.digest, False) not in needed]
    return [*needed, *(rest if all(layout.blob_size(digest) is not None for digest, _ in rest) else ())]


def _read_chunks(
    layout: Layout, wanted: Sequence[tuple[Digest, bool]], encoder: SpoolEncoder, what: str, report: Report
) -> _Renamed:
    """Encode the chunks `wanted`; what each one is now."""
    runs: list[tuple[tuple[Digest, bool], list[CutChunk]]] = []
    for count, (digest, compressed) in enumerate(wanted):
        run: list[CutChunk] = []
        encoder.put(_chunk(layout, digest, compressed, what), run)
        runs.append(((digest, compressed), run))
        report(Progress("read", what, count + 1, len(wanted)))
    encoder.flush()
    return {name: run[0] for name, run in runs}


def _chunk(layout: Layout, digest: Digest, compressed: bool, what: str) -> bytes:
    size = layout.blob_size(digest)
    if size is None:
        raise NotFoundError(f"{what}: its chunk {to_text(digest)} is not in {layout.name}")
    if size > CHUNK_MAX:
        raise CorruptError(f"{what}: its chunk {to_text(digest)} has {size} bytes; at most {CHUNK_MAX} are accepted")
    with layout.open_blob(Descriptor("", digest, size)) as stream:
        stored = stream.read()
    if not compressed:
        return stored
    try:
        return decode_seekable(stored, CHUNK_MAX)
    except CorruptError as error:
        raise CorruptError(f"{what}: its chunk {to_text(digest)} is corrupt: {error}") from None


def _layer(message: ReadMessage, rootfs: Rootfs, renamed: _Renamed, verity: Verity, shelf: Shelf, room: Room) -> BuiltLayer:
    """The layer to publish: the message as it is where it says the truth about raw chunks, else a new one, made in `room`."""
    for found in checked_inodes(rootfs):
        for chunk in found.chunks:
            _rename(chunk, renamed[chunk.digest, chunk.compressed])
    as_it_is = all(chunk.digest == digest and rootfs.verity(digest) == verity(digest) for (digest, _), chunk in renamed.items())
    if as_it_is:
        return BuiltLayer(message, [chunk.digest for chunk in renamed.values()])

    def rename(chunks: Sequence[FileChunk]) -> Sequence[FileChunk]:
        return [_rename(chunk, renamed[chunk.digest, chunk.compressed]) for chunk in chunks]

    return build_layer(alone(rootfs, rename, shelf), verity, room)


def _rename(chunk: FileChunk, now: CutChunk) -> FileChunk:
    if chunk.offset + chunk.length > now.length:
        raise CorruptError(f"a file takes bytes beyond the end of its chunk {to_text(chunk.digest)}")
    return replace(chunk, digest=now.digest, compressed=False)


def _config(descriptor: Descriptor) -> dict[str, object]:
    """A configuration that runs nothing; the platform is the one that the layout states, or this machine's."""
    here = Platform.of_this_machine()
    said = descriptor.platform or {}
    return {"architecture": said.get("architecture", here.architecture), "os": said.get("os", here.os), "config": {}}
