"""Where a lazy layer's bytes are: told to mount workers as plain values, opened there and in the daemon alike.

A seam: containerd's content store, mirrors and other kinds of stores become further entries of a `LayerSource`, opened in
the order in which they are to be asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from snapshotter.errors import InvalidError
from snapshotter.format.annotations import PackPlace
from snapshotter.format.digest import from_text, to_text
from snapshotter.registry import reference as references
from snapshotter.registry.client import RegistryStore
from snapshotter.registry.registries import Registries


@dataclass(frozen=True, slots=True)
class LayerSource:
    """The packs that hold a layer's chunks, and the image references whose repositories have the packs, best first.

    `layer` is the diff ID as text, by which reports name it.
    """

    packs: tuple[PackPlace, ...]
    images: tuple[str, ...]
    layer: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON values, for a worker."""
        return {
            "packs": [[to_text(place.pack), place.index_offset, place.index_length] for place in self.packs],
            "images": list(self.images),
            "layer": self.layer,
        }

    @classmethod
    def from_json(cls, value: Any) -> LayerSource:
        """From what `to_json` made.

        Raises:
            InvalidError: it is something else.
        """
        try:
            packs = tuple(PackPlace(from_text(text), int(offset), int(length)) for text, offset, length in value["packs"])
            return cls(packs, tuple(str(image) for image in value["images"]), str(value.get("layer", "")))
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidError(f"not the source of a layer: {error!r}") from None

    def open(self, registries: Registries) -> Sequence[RegistryStore]:
        """The repositories, each once, in their order. Connects to nothing yet.

        Raises:
            InvalidError: nothing names a repository.
        """
        found: dict[str, RegistryStore] = {}
        for image in self.images:
            reference = references.parse(image)
            if reference.name not in found:
                found[reference.name] = registries.open(reference)
        if not found:
            raise InvalidError(
                "nothing says where the image is from: neither the client (containerd.io/snapshot/cri.image-ref) "
                "nor the image (puzzlefs.source); pull it with a client that says so, or convert it again"
            )
        return list(found.values())
