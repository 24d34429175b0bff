"""Layers that are plain directories, and the labels by which containerd's unpacker asks for them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from snapshotter.errors import PuzzlefsError
from snapshotter.format.annotations import MetadataLayer, PackLayer, PackPlace
from snapshotter.format.digest import Digest, chain_id, sha256, to_text
from snapshotter.snapshots.lazy import diff_id_of
from snapshotter.snapshots.model import REF_LABEL, Usage


class DirectoryLayers:
    """A `LazyLayers` whose layers are empty directories; what it was asked is in `calls`, what it refuses in `refused`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[tuple[str, Digest]] = []
        self.asked: list[tuple[MetadataLayer, str | None, str]] = []
        self.restored: list[tuple[MetadataLayer, str | None]] = []
        self.refused: dict[Digest, PuzzlefsError] = {}
        self.stuck: dict[Digest, PuzzlefsError] = {}
        self.needed: set[Digest] = set()
        self.keep = False  # a released layer keeps its files
        self.during_ensure: Callable[[], None] = lambda: None

    @property
    def mounted(self) -> set[str]:
        return set(os.listdir(self.root)) if self.root.exists() else set()

    def ensure(self, layer: MetadataLayer, image: str | None, namespace: str) -> None:
        self.calls.append(("ensure", layer.diff_id))
        self.asked.append((layer, image, namespace))
        self.during_ensure()
        if layer.diff_id in self.refused:
            raise self.refused[layer.diff_id]
        self.mountpoint(layer.diff_id).mkdir(parents=True, exist_ok=True)

    def mountpoint(self, diff_id: Digest) -> Path:
        return self.root / diff_id.hex()[:12]

    def restore(self, layers: Iterable[tuple[MetadataLayer, str | None]]) -> Mapping[Digest, PuzzlefsError]:
        self.restored = list(layers)
        wanted = {layer.diff_id for layer, _ in self.restored}
        return {diff_id: error for diff_id, error in self.refused.items() if diff_id in wanted}

    def release(self, diff_id: Digest) -> None:
        self.calls.append(("release", diff_id))
        if diff_id in self.stuck:
            raise self.stuck[diff_id]
        if self.mountpoint(diff_id).exists() and not self.keep:
            self.mountpoint(diff_id).rmdir()

    def trim(self, layers: Iterable[MetadataLayer]) -> None:
        self.needed = {layer.diff_id for layer in layers}

    def usage(self, diff_id: Digest, below: Sequence[Digest] = ()) -> Usage:
        return Usage(4242 - len(below), 42)

    def count(self, call: str) -> int:
        return sum(1 for name, _ in self.calls if name == call)


def metadata(name: str, *, source: str | None = "registry.test/app:1") -> MetadataLayer:
    """A metadata layer whose diff ID is the digest of `name`."""
    return MetadataLayer(
        sha256(b"stored " + name.encode()), sha256(name.encode()), bytes(32), (PackPlace(sha256(b"pack"), 100, 20),), source
    )


def pack(name: str) -> PackLayer:
    """A data layer."""
    return PackLayer(sha256(b"pack " + name.encode()))


def labels_of(layer: MetadataLayer | PackLayer, chain: Digest, **more: str) -> dict[str, str]:
    """What containerd's unpacker sends with Prepare for `layer`."""
    return {**layer.annotations(), REF_LABEL: to_text(chain), **more}


def chains(*layers: MetadataLayer | PackLayer) -> list[Digest]:
    """The chain ID of every one of `layers`, each standing on the one before."""
    found: list[Digest] = []
    for layer in layers:
        found.append(chain_id(found[-1] if found else None, diff_id_of(layer)))
    return found
