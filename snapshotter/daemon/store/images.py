"""Which layers an image's reference stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from snapshotter.daemon.store.state import StoredLayer
from snapshotter.errors import CorruptError, NotFoundError, PuzzlefsError
from snapshotter.format.annotations import MetadataLayer, parse
from snapshotter.format.digest import Digest, to_text
from snapshotter.registry import documents
from snapshotter.registry.base import ImageStore
from snapshotter.registry.client import RegistryStore
from snapshotter.registry.platforms import Platform, select
from snapshotter.registry.reference import Reference
from snapshotter.registry.registries import Registries

T = TypeVar("T")

LAYERS_MAX = 1024
"""Most layers of an image that are looked at; overlayfs takes 500 lower directories."""


def layers_of(store: ImageStore, selector: str, platform: Platform, what: str) -> Sequence[StoredLayer]:
    """The PuzzleFS layers of the image `selector` (a tag or a digest); of an index, of the image for `platform`.

    `what` names the image in messages.

    Raises:
        NotFoundError: there is no such image, or it has no PuzzleFS layers.
        CorruptError: it contradicts itself.
        UnavailableError, InvalidError: see `ImageStore`.
    """
    descriptor, data = store.manifest(selector)
    if documents.is_index(descriptor.media_type):
        entries = [documents.descriptor_from_json(entry, what) for entry in documents.parse_object(data, what)["manifests"]]
        descriptor, data = store.manifest(to_text(select(entries, platform, what).digest))
    manifest = documents.parse_object(data, what)
    described = manifest.get("layers")
    if not isinstance(described, list) or len(described) > LAYERS_MAX:
        raise CorruptError(f"{what}: its manifest has no list of at most {LAYERS_MAX} layers")
    layers = []
    for entry in described:
        blob = documents.descriptor_from_json(entry, what)
        layer = parse(blob.annotations)
        if layer is None:
            continue  # an ordinary layer: containers/storage downloads it
        named: Digest = layer.metadata if isinstance(layer, MetadataLayer) else layer.pack
        if named != blob.digest:
            raise CorruptError(f"{what}: layer {to_text(blob.digest)} is annotated as blob {to_text(named)}")
        layers.append(StoredLayer(blob.digest, blob.size, layer))
    if not layers:
        raise NotFoundError(f"{what} has no PuzzleFS layers")
    return layers


class RegistryImages:
    """`tree.Images` over registries and their mirrors: images for this machine's platform."""

    def __init__(self, registries: Registries) -> None:
        self._registries = registries
        self._platform = Platform.of_this_machine()

    def layers(self, reference: Reference) -> Sequence[StoredLayer]:
        """See `tree.Images`."""
        stores = self._registries.readers(reference, resolve=True)
        what = reference.canonical
        return _first(stores, lambda store: layers_of(store, reference.selector, self._platform, what), what)

    def read_blob(self, reference: Reference, digest: Digest, offset: int, length: int) -> bytes:
        """See `tree.Images`."""
        stores = self._registries.readers(reference)
        return _first(stores, lambda store: store.read_range(digest, offset, length), reference.canonical)


def _first(stores: Sequence[RegistryStore], ask: Callable[[RegistryStore], T], what: str) -> T:
    """What the first of `stores` answers that can; the last one's error if none can."""
    error: PuzzlefsError = NotFoundError(f"{what}: no registry to ask")
    for store in stores:
        try:
            return ask(store)
        except PuzzlefsError as failure:
            error = failure
    raise error
