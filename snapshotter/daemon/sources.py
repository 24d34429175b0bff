"""Where a lazy layer's bytes are: told to mount workers as plain values, opened there and in the daemon alike.

`Sources.open` is the one place where what is known about an image becomes places that are asked, and its order the order in
which they are asked::

    containerd's content store  →  stores of the configuration  →  for each reference: its mirrors, then its registry
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snapshotter.errors import InvalidError, PuzzlefsError
from snapshotter.format.annotations import PackPlace
from snapshotter.format.digest import Digest, from_text, to_text
from snapshotter.registry import reference as references
from snapshotter.registry.base import BlobSource
from snapshotter.registry.registries import Registries

if TYPE_CHECKING:  # gRPC is imported where there is something to read from containerd
    from snapshotter.daemon.contentstore import ContentStore

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LayerSource:
    """The packs that hold a layer's chunks, and where the packs are, best first.

    `images`: references whose repositories have them. `layer` is the diff ID as text, by which reports name it. `namespaces`:
    those of containerd whose content store has some of the packs. `profile` is the pack, one of `packs`, to be fetched at once;
    `start` a file of a start that was recorded on this node (`recorder`), whose chunks are; `record` one to record reads in.
    `mountpoint` is given for a layer that was just pulled, whose start is still to come. `background`: whether the rest may be
    fetched unasked.
    """

    packs: tuple[PackPlace, ...]
    images: tuple[str, ...]
    layer: str = ""
    namespaces: tuple[str, ...] = ()
    profile: Digest | None = None
    start: str | None = None
    record: str | None = None
    mountpoint: str | None = None
    background: bool = True

    def to_json(self) -> dict[str, Any]:
        """As JSON values, for a worker."""
        return {
            "packs": [[to_text(place.pack), place.index_offset, place.index_length] for place in self.packs],
            "images": list(self.images),
            "layer": self.layer,
            "namespaces": list(self.namespaces),
            "profile": None if self.profile is None else to_text(self.profile),
            "start": self.start,
            "record": self.record,
            "mountpoint": self.mountpoint,
            "background": self.background,
        }

    def unattended(self) -> LayerSource:
        """The same places, with nothing to be fetched or noted unasked."""
        return replace(self, profile=None, start=None, record=None, mountpoint=None, background=False)

    @classmethod
    def from_json(cls, value: Any) -> LayerSource:
        """From what `to_json` made.

        Raises:
            InvalidError: it is something else.
        """
        try:
            packs = tuple(PackPlace(from_text(text), int(offset), int(length)) for text, offset, length in value["packs"])
            images = tuple(str(image) for image in value["images"])
            namespaces = tuple(str(namespace) for namespace in value.get("namespaces", ()))
            profile, start, record, mountpoint = (value.get(key) for key in ("profile", "start", "record", "mountpoint"))
            return cls(
                packs,
                images,
                str(value.get("layer", "")),
                namespaces,
                None if profile is None else from_text(str(profile)),
                None if start is None else str(start),
                None if record is None else str(record),
                None if mountpoint is None else str(mountpoint),
                bool(value.get("background", True)),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidError(f"not the source of a layer: {error!r}") from None


class Sources:
    """All places that one process may read blobs from. Safe for use by many threads.

    `stores` are those that the configuration names, `containerd` is the address of containerd's socket (None: not asked).
    None of them is closed here but what this opens itself: the connections to containerd.
    """

    def __init__(self, registries: Registries, stores: Sequence[BlobSource] = (), containerd: Path | None = None) -> None:
        self._registries = registries
        self._stores = tuple(stores)
        self._containerd = containerd
        self._lock = threading.Lock()
        self._content: dict[str, ContentStore] = {}

    def open(self, source: LayerSource) -> Sequence[BlobSource]:
        """The places of `source`, each once, in their order. Connects to nothing yet.

        A reference that is none, or whose registry is not allowed, is passed over if there is any other place.

        Raises:
            InvalidError: there is no place, or none that may be asked.
        """
        found: dict[str, BlobSource] = {}
        refused: PuzzlefsError | None = None
        for store in [*(self.content(namespace) for namespace in source.namespaces), *self._stores]:
            if store is not None:
                found.setdefault(store.name, store)
        for image in source.images:
            try:
                for reader in self._registries.readers(references.parse(image)):
                    found.setdefault(reader.name, reader)
            except PuzzlefsError as error:
                _log.warning("%s", error)
                refused = refused or error
        if not found:
            raise refused or InvalidError(
                "nothing says where the image is from: neither the client (containerd.io/snapshot/cri.image-ref) "
                "nor the image (puzzlefs.source); pull it with a client that says so, or convert it again"
            )
        return list(found.values())

    def content(self, namespace: str) -> ContentStore | None:
        """containerd's content store in `namespace`, where there is a containerd to ask."""
        if self._containerd is None or not namespace:
            return None
        from snapshotter.daemon.contentstore import ContentStore

        with self._lock:
            if namespace not in self._content:
                self._content[namespace] = ContentStore(self._containerd, namespace)
            return self._content[namespace]

    def close(self) -> None:
        """Close the connections to containerd."""
        with self._lock:
            for store in self._content.values():
                store.close()
