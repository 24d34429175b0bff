"""``puzzlefs pull``: what a lazy client of containerd does, for those whose client is not one (``ctr`` of containerd 1.6).

The steps are those of containerd's own client with an unpacker: manifest and configuration go to the content store with the
labels by which garbage collection finds everything below them, each layer is meanwhile offered to the snapshotter by Prepare
with the layer's annotations as labels, and the image record comes last. A layer that the snapshotter takes (AlreadyExists) is
not downloaded; an ordinary layer of a mixed image is downloaded and unpacked as usual.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from snapshotter.daemon.anyhost import AnyHost
from snapshotter.daemon.containerd import Containerd
from snapshotter.daemon.pullproto import Event, LayerArriving, LayerDone, Pulled, PullRequest
from snapshotter.errors import AlreadyExistsError, CorruptError, FailedPreconditionError, InvalidError
from snapshotter.format.annotations import parse as puzzlefs_layer
from snapshotter.format.digest import Digest, chain_id, from_text, to_text
from snapshotter.registry import documents
from snapshotter.registry import reference as references
from snapshotter.registry.base import MANIFEST_MAX, Descriptor
from snapshotter.registry.platforms import Platform, select
from snapshotter.registry.reference import Reference
from snapshotter.registry.registries import Registries

SNAPSHOT_REF = "containerd.io/snapshot.ref"
"""The label of Prepare that names the chain which is about to be unpacked (containerd's unpacker)."""
IMAGE_REF = "containerd.io/snapshot/cri.image-ref"
"""The label by which CRI's and nerdctl's clients say what image is being pulled."""
LABEL_PREFIX = "containerd.io/snapshot/"

_READ_SIZE = 1 << 20


class Source(Protocol):
    """Where an image is pulled from (`anyhost.AnyHost`)."""

    def manifest(self, reference: str) -> tuple[Descriptor, bytes]:
        """See `registry.base.ImageStore`."""
        ...

    def read_blob(self, blob: Descriptor) -> bytes:
        """A whole blob, checked against its digest. Failures are `ImageStore`'s."""
        ...

    def open_blob(self, blob: Descriptor) -> BinaryIO:
        """See `registry.base.ImageStore`."""
        ...


def pull_here(address: Path, registries: Registries, request: PullRequest, progress: Callable[[Event], None]) -> Pulled:
    """Do `request` in the containerd at `address`, with what `registries` have.

    Raises:
        As `pull`; InvalidError: the request's reference or platform is none.
    """
    reference = references.parse(request.reference).with_default_tag()
    platform = Platform.parse(request.platform) if request.platform else Platform.of_this_machine()
    with Containerd(address, request.namespace) as containerd:
        source = AnyHost(registries, reference)
        return pull(containerd, source, reference, snapshotter=request.snapshotter, platform=platform, progress=progress)


def pull(
    containerd: Containerd,
    source: Source,
    reference: Reference,
    *,
    snapshotter: str,
    platform: Platform,
    progress: Callable[[Event], None],
) -> Pulled:
    """Pull the image `reference` of `source` into `containerd`, lazily where its layers allow it.

    Whatever `progress` raises ends the pull, and leaves no snapshot that is not done.

    Raises:
        FailedPreconditionError: a PuzzleFS layer was not taken: `snapshotter` is not ours.
        NotFoundError, UnavailableError, InvalidError, CorruptError: from the registry, containerd or the snapshotter.
    """
    image = _read(source, reference, platform)
    received = sum(len(document.data) for document in image.documents)
    diff_ids = _diff_ids(image.config, len(image.layers), reference)
    chain: Digest | None = None
    lazy_layers = 0
    with containerd.lease(), ThreadPoolExecutor(1, "documents") as pool:
        # no layer waits for it, and containerd takes its time to have it on the disk
        stored = pool.submit(_store, containerd, image.documents)
        for number, (layer, diff_id) in enumerate(zip(image.layers, diff_ids, strict=True), 1):
            parent, chain = chain, chain_id(chain, diff_id)
            lazy, downloaded = _unpack(containerd, source, reference, snapshotter, layer, diff_id, parent, chain, progress)
            lazy_layers += lazy
            received += downloaded
            progress(LayerDone(number, len(diff_ids), to_text(layer.digest), downloaded, lazy))
        stored.result()
        if chain is None:
            raise InvalidError(f"{reference.canonical} has no layers")
        config = image.documents[-1].descriptor.digest
        containerd.label_content(config, {f"containerd.io/gc.ref.snapshot.{snapshotter}": to_text(chain)})
        containerd.put_image(reference.canonical, image.documents[0].descriptor)
    manifest = to_text(image.documents[0].descriptor.digest)
    return Pulled(reference.canonical, manifest, to_text(chain), lazy_layers, len(diff_ids), received)


@dataclass(frozen=True, slots=True)
class _Document:
    """A document of an image, and the labels that it is stored with."""

    descriptor: Descriptor
    data: bytes
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Image:
    """An image's documents, from what its record is to point at to its configuration; what manifest and configuration say."""

    documents: Sequence[_Document]
    layers: Sequence[Descriptor]
    config: Mapping[str, Any]


def _read(source: Source, reference: Reference, platform: Platform) -> _Image:
    what = reference.canonical
    origin = {f"containerd.io/distribution.source.{reference.host}": reference.repository}
    read: list[_Document] = []
    descriptor, data = source.manifest(reference.selector)
    if documents.is_index(descriptor.media_type):
        entries = [documents.descriptor_from_json(entry, what) for entry in documents.parse_object(data, what)["manifests"]]
        # Only the chosen platform is stored; the labels name all, as containerd's client does.
        labels = {f"containerd.io/gc.ref.content.m.{i}": to_text(entry.digest) for i, entry in enumerate(entries)}
        read.append(_Document(descriptor, data, {**labels, **origin}))
        descriptor, data = source.manifest(to_text(select(entries, platform, what).digest))
    manifest = documents.parse_object(data, what)
    if not isinstance(manifest.get("layers"), list) or "config" not in manifest:
        raise CorruptError(f"{what}: its manifest has no layers or no configuration")
    config = documents.descriptor_from_json(manifest["config"], what)
    if config.size > MANIFEST_MAX:
        raise CorruptError(f"{what}: a configuration of {config.size} bytes, at most {MANIFEST_MAX} are read")
    labels = {"containerd.io/gc.ref.content.config": to_text(config.digest)}
    layers = [documents.descriptor_from_json(layer, what) for layer in manifest["layers"]]
    for number, layer in enumerate(layers):
        labels[f"containerd.io/gc.ref.content.l.{number}"] = to_text(layer.digest)
    config_data = source.read_blob(config)
    parsed = documents.parse_object(config_data, f"configuration of {what}")
    if not read and "os" in parsed and "architecture" in parsed:
        # no index says what this image is for
        select([dataclasses.replace(descriptor, platform=parsed)], platform, what)
    read += [_Document(descriptor, data, {**labels, **origin}), _Document(config, config_data, origin)]
    return _Image(read, layers, parsed)


def _store(containerd: Containerd, read: Sequence[_Document]) -> None:
    for document in read:
        containerd.write_content(document.descriptor, iter([document.data]), document.labels)


def _diff_ids(config: Mapping[str, Any], layers: int, reference: Reference) -> Sequence[Digest]:
    texts = config.get("rootfs", {}).get("diff_ids") if isinstance(config.get("rootfs"), dict) else None
    if not isinstance(texts, list) or len(texts) != layers:
        raise CorruptError(f"{reference.canonical}: its configuration does not name one diff ID for each of {layers} layers")
    return [from_text(str(text)) for text in texts]


def _unpack(
    containerd: Containerd,
    source: Source,
    reference: Reference,
    snapshotter: str,
    layer: Descriptor,
    diff_id: Digest,
    parent: Digest | None,
    chain: Digest,
    progress: Callable[[Event], None],
) -> tuple[bool, int]:
    """Make the snapshot of `chain`; whether it is lazy, and the bytes of the layer that were downloaded."""
    name = to_text(chain)
    if containerd.has_snapshot(snapshotter, name):
        return puzzlefs_layer(layer.annotations) is not None, 0
    labels = {key: value for key, value in layer.annotations.items() if key.startswith(LABEL_PREFIX)}
    ours = puzzlefs_layer(labels) is not None
    labels |= {SNAPSHOT_REF: name, IMAGE_REF: reference.canonical}
    key = f"extract-{secrets.token_hex(6)} {name}"
    parent_name = to_text(parent) if parent is not None else ""
    try:
        mounts = containerd.prepare(snapshotter, key, parent_name, labels)
    except AlreadyExistsError:
        return ours, 0
    try:
        if ours:
            raise FailedPreconditionError(
                f"snapshotter {snapshotter} did not take PuzzleFS layer {to_text(layer.digest)} of {reference.canonical}: "
                "is it puzzlefs-snapshotter, and registered as a proxy plugin in containerd's configuration?"
            )
        with source.open_blob(layer) as stream:
            containerd.write_content(layer, _pieces(stream, layer, progress), {})
        applied = containerd.apply(layer, mounts)
        if applied != diff_id:
            raise CorruptError(f"layer {to_text(layer.digest)} unpacks to {to_text(applied)}, not to {to_text(diff_id)}")
        containerd.commit(snapshotter, name, key, labels)
    except BaseException:
        containerd.remove_snapshot(snapshotter, key)
        raise
    containerd.label_content(layer.digest, {"containerd.io/uncompressed": to_text(diff_id)})
    return False, layer.size


def _pieces(stream: BinaryIO, layer: Descriptor, progress: Callable[[Event], None]) -> Iterator[bytes]:
    received = 0
    while piece := stream.read(_READ_SIZE):
        received += len(piece)
        progress(LayerArriving(to_text(layer.digest), received, layer.size))
        yield piece
