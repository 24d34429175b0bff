"""Whether the images of this node really are lazy, in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from snapshotter.doctor.finding import Finding, ok, warn


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """A layer of an image on this node.

    `puzzlefs`: its annotations describe a PuzzleFS layer. `size`: of the blob. `downloaded`: the whole blob is in containerd's
    content store. `lazy`: its snapshot is a lazily mounted one; `unpacked`: it is an ordinary one; neither: it has none.
    `cached`: bytes that the snapshot takes on this node.
    """

    puzzlefs: bool
    size: int
    downloaded: bool
    lazy: bool
    unpacked: bool
    cached: int = 0


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image record of containerd; `layers` of the platform that is here, `error` why it could not be looked into."""

    namespace: str
    name: str
    layers: Sequence[LayerFacts] = ()
    error: str = ""

    @property
    def lazy_layers(self) -> int:
        """Layers that are mounted lazily."""
        return sum(layer.lazy for layer in self.layers)

    @property
    def size(self) -> int:
        """Bytes of all layers, as the registry has them."""
        return sum(layer.size for layer in self.layers)

    @property
    def downloaded(self) -> int:
        """Bytes of the layers that containerd's content store has whole."""
        return sum(layer.size for layer in self.layers if layer.downloaded)

    @property
    def cached(self) -> int:
        """Bytes that the layers take on this node; what layers share counts for each."""
        return sum(layer.cached for layer in self.layers)


def check_image(image: ImageFacts) -> Finding:
    """One line for an image."""
    check = f"image.{image.namespace}/{image.name}"
    if image.error:
        return warn(check, f"cannot be looked into: {image.error}", "pull it again")
    ours = [layer for layer in image.layers if layer.puzzlefs]
    if not ours:
        return ok(check, f"an ordinary image of {_mb(image.size)}", "puzzlefs convert makes it lazy")
    lazy, here = image.lazy_layers, sum(layer.cached for layer in ours)
    figures = f"{_mb(here)} of its files are here, {_mb(image.downloaded)} of its {_mb(image.size)} were downloaded whole"
    if not any(layer.lazy or layer.unpacked for layer in image.layers):
        text = f"PuzzleFS, but not unpacked with this snapshotter; {figures}"
        return warn(check, text, f"puzzlefs pull {image.name}")
    if lazy < len(ours):
        text = f"{lazy} of {len(ours)} PuzzleFS layers are lazy; {figures}"
        return warn(check, text, f"remove it, and puzzlefs pull {image.name}")
    if any(layer.downloaded for layer in ours):
        text = f"mounted lazily, and yet downloaded; {figures}"
        return warn(check, text, "it was loaded, or pulled for all platforms or without labels: puzzlefs pull avoids that")
    ordinary = len(image.layers) - len(ours)
    more = f" and {ordinary} ordinary ones" if ordinary else ""
    return ok(check, f"lazy: {lazy} layers{more}; {figures}")


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
