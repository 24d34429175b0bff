"""Converts an ordinary image into a PuzzleFS image.

Each source layer becomes a metadata layer that depends on the layer's tree alone; the chunks that no reused pack has become
new packs. Blobs are put as they are made, manifests at the very end, so a conversion that fails leaves no image behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType

from snapshotter.build.chunk import Cutting
from snapshotter.build.content import distinct, layer_from_tar, layer_message
from snapshotter.build.decompress import LayerStream, open_layer
from snapshotter.build.documents import (
    ImageManifest,
    check_convertible,
    describe,
    diff_ids,
    is_image,
    new_index,
    parse_index,
    parse_manifest,
)
from snapshotter.build.entries import Node, Numbering
from snapshotter.build.entries import number as walk_order
from snapshotter.build.progress import Progress, Report, silent
from snapshotter.build.publish import PublishedLayer, Publisher, SealedMessage, seal
from snapshotter.build.reuse import gather, read_json
from snapshotter.build.segments import SegmentFiles
from snapshotter.build.shelf import Shelf
from snapshotter.build.spool import ChunkSpool
from snapshotter.build.spoolencoder import SpoolEncoder
from snapshotter.errors import CorruptError, InvalidError, UnsupportedError
from snapshotter.format.compression import DEFAULT_LEVEL
from snapshotter.format.digest import Digest, to_text
from snapshotter.registry.base import Descriptor, ImageStore, Layout
from snapshotter.registry.documents import OCI_INDEX, OCI_MANIFEST, is_index


@dataclass(frozen=True, slots=True)
class Options:
    """How an image is built: `level` is zstd's, `workers` encode (None: one a core), `temporary` is where spools are made."""

    cutting: Cutting = field(default_factory=Cutting)
    level: int = DEFAULT_LEVEL
    workers: int | None = None
    temporary: Path | None = None


@dataclass(frozen=True, slots=True)
class Converted:
    """What was made. `source` and `tar` are the source's bytes as stored and uncompressed, `pushed` those of new blobs."""

    manifest: Descriptor
    platforms: int
    layers: int
    source: int
    tar: int
    pushed: int
    packs_new: int
    packs_reused: int


@dataclass(frozen=True, slots=True)
class _Image:
    """One image of the source: its manifest, its descriptor in the index (if there is one), its name for messages."""

    manifest: ImageManifest
    entry: Descriptor
    name: str


def convert(
    source: ImageStore,
    reference: str,
    destination: ImageStore,
    tag: str | None,
    *,
    destination_name: str | None = None,
    reuse: Sequence[tuple[ImageStore, str]] = (),
    options: Options | None = None,
    report: Report = silent,
) -> Converted:
    """Convert the image `reference` of `source`, every platform of it, and store the result in `destination` as `tag`.

    `destination_name` is the reference under which a registry will serve it (a hint in the annotations; None for places that
    are no registries), `reuse` names images whose packs are to be used besides those of the destination's recent tags.

    Raises:
        InvalidError: the source is a PuzzleFS image, or holds what no layer may hold.
        UnsupportedError: the source is not an image of tar layers.
        CorruptError: the source's content does not match its digests, or is malformed.
        NotFoundError, UnavailableError, FailedPreconditionError: see `ImageStore`; the temporary directory.
    """
    chosen = options or Options()
    descriptor, data = source.manifest(reference)
    what = f"{source.name}@{reference}" if ":" in reference else f"{source.name}:{reference}"
    images = _images(source, descriptor, data, what, report)
    for image in images:
        check_convertible(image.manifest, image.name)
    known = gather(destination, tag, reuse, lambda text: report(Progress("note", text)))
    with ExitStack() as stack:
        spool = ChunkSpool(chosen.temporary)
        stack.callback(spool.close)
        stored = sum(layer.size for image in images for layer in image.manifest.layers)
        cutting, workers = chosen.cutting, chosen.workers
        encoder = stack.enter_context(
            SpoolEncoder(spool, chosen.level, known.digests(), workers=workers, chunk_max=cutting.longest, expected=stored)
        )
        publisher = Publisher(destination, known, spool, report, source=destination_name)
        shelf = Shelf(chosen.temporary)
        stack.callback(shelf.close)
        reader = stack.enter_context(_ImageReader(source, spool, shelf, encoder, chosen, report))
        manifests = []
        for image in images:
            layers, config = reader.read(image)
            manifests.append(publisher.publish(layers, config, image.manifest.annotations))
    if is_index(descriptor.media_type):
        entries = []
        for image, manifest in zip(images, manifests, strict=True):
            entry = describe(OCI_MANIFEST, manifest, image.entry.annotations, image.entry.platform)
            destination.put_manifest(entry, manifest, None)
            entries.append(entry)
        content = new_index(entries, parse_index(data, what)[1])
        final = describe(OCI_INDEX, content)
    else:
        content = manifests[0]
        final = describe(OCI_MANIFEST, content)
    destination.put_manifest(final, content, tag)
    figures = publisher.figures
    return Converted(
        final,
        platforms=len(images),
        layers=sum(len(image.manifest.layers) for image in images),
        source=stored,
        tar=reader.tar_bytes,
        pushed=figures.pushed,
        packs_new=len(figures.packs_new),
        packs_reused=len(figures.packs_reused),
    )


def _images(source: ImageStore, descriptor: Descriptor, data: bytes, what: str, report: Report) -> list[_Image]:
    """The images that `descriptor` stands for."""
    if not is_index(descriptor.media_type):
        return [_Image(parse_manifest(data, what), descriptor, what)]
    entries, _ = parse_index(data, what)
    images = []
    for entry in entries:
        if not is_image(entry):
            report(Progress("note", f"{what}: {to_text(entry.digest)} is no image (an attestation) and is left out"))
            continue
        if is_index(entry.media_type):
            raise UnsupportedError(f"{what} is an index of indexes; convert one of them by its digest")
        name = f"{what} ({_platform(entry)})"
        images.append(_Image(parse_manifest(source.manifest(to_text(entry.digest))[1], name), entry, name))
    if not images:
        raise InvalidError(f"{what} is an index without images")
    return images


def _platform(entry: Descriptor) -> str:
    said = entry.platform or {}
    return "/".join(str(said[key]) for key in ("os", "architecture", "variant") if said.get(key)) or to_text(entry.digest)


class _ImageReader:
    """Reads the layers of one image after another, their chunks into one spool. Used in a with statement."""

    def __init__(
        self,
        source: ImageStore,
        spool: ChunkSpool,
        shelf: Shelf,
        encoder: SpoolEncoder,
        options: Options,
        report: Report,
    ) -> None:
        self._source = source
        self._spool = spool
        self._shelf = shelf
        self._encoder = encoder
        self._options = options
        self._report = report
        # A layer's metadata is made while the next layer is read.
        self._sealer = ThreadPoolExecutor(1, "seal")
        self.tar_bytes = 0

    def __enter__(self) -> _ImageReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._sealer.shutdown(cancel_futures=True)

    def read(self, image: _Image) -> tuple[list[PublishedLayer], Mapping[str, object]]:
        """The image's layers, and its configuration."""
        config = read_json(self._source, image.manifest.config, f"the configuration of {image.name}")
        expected = diff_ids(config, len(image.manifest.layers), image.name)
        trees: list[Node] = []
        layers = []
        for number, (layer, diff_id) in enumerate(zip(image.manifest.layers, expected, strict=True), 1):
            with _naming(f"layer {number} of {image.name}"):
                trees.insert(0, self._layer(layer, diff_id, trees))
            numbering = walk_order(trees[0])
            chunks = distinct(numbering)
            seal_it = partial(self._seal, numbering, chunks)
            # The last one's is made when the packs are on their way: planning them and this would wait for one another.
            last = number == len(image.manifest.layers)
            layers.append(PublishedLayer(chunks, seal_it if last else self._sealer.submit(seal_it).result))
        return layers, config

    def _seal(self, numbering: Numbering, chunks: Sequence[Digest]) -> SealedMessage:
        return seal(layer_message(numbering, chunks, self._spool.verity, SegmentFiles(self._options.temporary)))

    def _layer(self, layer: Descriptor, diff_id: Digest, below: Sequence[Node]) -> Node:
        name = to_text(layer.digest)
        done = 0

        def count(stored: int) -> None:
            nonlocal done
            done += stored
            self._report(Progress("read", name, done, layer.size))

        blob = self._source.open_blob(layer)
        here = isinstance(self._source, Layout)
        with open_layer(blob, name, count, layer.digest) if here else LayerStream(blob, name, count, layer.digest) as stream:
            options = self._options
            tree = layer_from_tar(stream, below, self._encoder, options.cutting, options.temporary, self._shelf)
            found = stream.digest()
        self.tar_bytes += stream.length
        if found != diff_id:
            raise CorruptError(f"the tar has the digest {to_text(found)}, the configuration says {to_text(diff_id)}")
        return tree


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Put `what` before the message of an error about a layer's content."""
    try:
        yield
    except (InvalidError, CorruptError) as error:
        if type(error) not in (InvalidError, CorruptError):
            raise
        raise type(error)(f"{what}: {error}") from error
