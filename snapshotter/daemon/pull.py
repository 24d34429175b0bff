"""``puzzlefs pull``: what a lazy client of containerd does, for those whose client is not one (``ctr`` of containerd 1.6).

The steps are those of containerd's own client with an unpacker: manifest and configuration go to the content store with the
labels by which garbage collection finds everything below them, each layer is offered to the snapshotter by Prepare with the
layer's annotations as labels, and the image record comes last. A layer that the snapshotter takes (AlreadyExists) is not
downloaded; an ordinary layer of a mixed image is downloaded and unpacked as usual.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from snapshotter.daemon.containerd import Containerd
from snapshotter.errors import AlreadyExistsError, CorruptError, FailedPreconditionError, InvalidError
from snapshotter.format.annotations import parse as puzzlefs_layer
from snapshotter.format.digest import Digest, chain_id, from_text, to_text
from snapshotter.registry import documents
from snapshotter.registry.base import MANIFEST_MAX, Descriptor
from snapshotter.registry.platforms import Platform, select
from snapshotter.registry.reference import Reference

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


@dataclass(frozen=True, slots=True)
class LayerDone:
    """Reported for every layer: its place in the image, and whether nothing of it had to be downloaded."""

    number: int
    count: int
    layer: Descriptor
    lazy: bool


@dataclass(frozen=True, slots=True)
class Pulled:
    """A pulled image: its name in containerd, the manifest of the platform, the chain ID of its root, what was lazy."""

    name: str
    manifest: Digest
    chain: Digest
    lazy_layers: int
    layers: int


def pull(
    containerd: Containerd,
    source: Source,
    reference: Reference,
    *,
    snapshotter: str,
    platform: Platform,
    progress: Callable[[LayerDone], None],
) -> Pulled:
    """Pull the image `reference` of `source` into `containerd`, lazily where its layers allow it.

    Raises:
        FailedPreconditionError: a PuzzleFS layer was not taken: `snapshotter` is not ours.
        NotFoundError, UnavailableError, InvalidError, CorruptError: from the registry, containerd or the snapshotter.
    """
    with containerd.lease():
        target, manifest, config = _store_documents(containerd, source, reference, snapshotter, platform)
        layers = [documents.descriptor_from_json(layer, reference.canonical) for layer in manifest["layers"]]
        diff_ids = _diff_ids(config, len(layers), reference)
        chain: Digest | None = None
        lazy_layers = 0
        for number, (layer, diff_id) in enumerate(zip(layers, diff_ids, strict=True), 1):
            parent, chain = chain, chain_id(chain, diff_id)
            lazy = _unpack(containerd, source, reference, snapshotter, layer, diff_id, parent, chain)
            lazy_layers += lazy
            progress(LayerDone(number, len(layers), layer, lazy))
        if chain is None:
            raise InvalidError(f"{reference.canonical} has no layers")
        config_digest = documents.descriptor_from_json(manifest["config"], reference.canonical).digest
        containerd.label_content(config_digest, {f"containerd.io/gc.ref.snapshot.{snapshotter}": to_text(chain)})
        containerd.put_image(reference.canonical, target)
    return Pulled(reference.canonical, target.digest, chain, lazy_layers, len(layers))


def _store_documents(
    containerd: Containerd, source: Source, reference: Reference, snapshotter: str, platform: Platform
) -> tuple[Descriptor, Mapping[str, Any], Mapping[str, Any]]:
    """Put index, manifest and configuration into the content store; what the image record points at, and the parsed two."""
    what = reference.canonical
    origin = {f"containerd.io/distribution.source.{reference.host}": reference.repository}
    target, data = source.manifest(reference.selector)
    descriptor = target
    if documents.is_index(target.media_type):
        entries = [documents.descriptor_from_json(entry, what) for entry in documents.parse_object(data, what)["manifests"]]
        # Only the chosen platform is stored; the labels name all, as containerd's client does.
        labels = {f"containerd.io/gc.ref.content.m.{i}": to_text(entry.digest) for i, entry in enumerate(entries)}
        containerd.write_content(target, iter([data]), {**labels, **origin})
        descriptor, data = source.manifest(to_text(select(entries, platform, what).digest))
    manifest = documents.parse_object(data, what)
    if not isinstance(manifest.get("layers"), list) or "config" not in manifest:
        raise CorruptError(f"{what}: its manifest has no layers or no configuration")
    config = documents.descriptor_from_json(manifest["config"], what)
    if config.size > MANIFEST_MAX:
        raise CorruptError(f"{what}: a configuration of {config.size} bytes, at most {MANIFEST_MAX} are read")
    labels = {"containerd.io/gc.ref.content.config": to_text(config.digest)}
    for number, layer in enumerate(manifest["layers"]):
        labels[f"containerd.io/gc.ref.content.l.{number}"] = to_text(documents.descriptor_from_json(layer, what).digest)
    config_data = source.read_blob(config)
    parsed = documents.parse_object(config_data, f"configuration of {what}")
    if descriptor is target and "os" in parsed and "architecture" in parsed:
        # no index says what this image is for
        select([dataclasses.replace(target, platform=parsed)], platform, what)
    containerd.write_content(descriptor, iter([data]), {**labels, **origin})
    containerd.write_content(config, iter([config_data]), origin)
    return target, manifest, parsed


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
) -> bool:
    """Make the snapshot of `chain`; whether that took no download."""
    name = to_text(chain)
    if containerd.has_snapshot(snapshotter, name):
        return puzzlefs_layer(layer.annotations) is not None
    labels = {key: value for key, value in layer.annotations.items() if key.startswith(LABEL_PREFIX)}
    ours = puzzlefs_layer(labels) is not None
    labels |= {SNAPSHOT_REF: name, IMAGE_REF: reference.canonical}
    key = f"extract-{secrets.token_hex(6)} {name}"
    parent_name = to_text(parent) if parent is not None else ""
    try:
        mounts = containerd.prepare(snapshotter, key, parent_name, labels)
    except AlreadyExistsError:
        return ours
    try:
        if ours:
            raise FailedPreconditionError(
                f"snapshotter {snapshotter} did not take PuzzleFS layer {to_text(layer.digest)} of {reference.canonical}: "
                "is it puzzlefs-snapshotter, and registered as a proxy plugin in containerd's configuration?"
            )
        with source.open_blob(layer) as stream:
            containerd.write_content(layer, _pieces(stream), {})
        applied = containerd.apply(layer, mounts)
        if applied != diff_id:
            raise CorruptError(f"layer {to_text(layer.digest)} unpacks to {to_text(applied)}, not to {to_text(diff_id)}")
        containerd.commit(snapshotter, name, key, labels)
    except BaseException:
        containerd.remove_snapshot(snapshotter, key)
        raise
    containerd.label_content(layer.digest, {"containerd.io/uncompressed": to_text(diff_id)})
    return False


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    while piece := stream.read(_READ_SIZE):
        yield piece
