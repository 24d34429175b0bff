"""A layer's metadata on a disk that loses bits: the daemon's part and the mount worker's."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapshotter.chunkstore.publish import publish
from snapshotter.daemon.layers import Layers
from snapshotter.daemon.origin import Origins
from snapshotter.daemon.sources import LayerSource, Sources
from snapshotter.errors import NotFoundError
from snapshotter.format import fsverity
from snapshotter.format.annotations import MetadataLayer
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.model import ROOT_INO, DirEntry, Inode, Kind, RootfsContent
from snapshotter.format.verity import verity_digest
from snapshotter.format.writer import encode
from snapshotter.registry.registries import Registries
from tests.vm.disk import flip_on_disk

NAMES = [b"file-%05d" % number for number in range(2000)]
MESSAGE = encode(
    RootfsContent(
        [
            [
                Inode(ROOT_INO, Kind.DIR, entries=[DirEntry(ino, name) for ino, name in enumerate(NAMES, 2)]),
                *(Inode(ino, Kind.FIFO) for ino in range(2, len(NAMES) + 2)),
            ]
        ]
    )
)
LAYER = MetadataLayer(sha256(b"stored"), sha256(MESSAGE), verity_digest(MESSAGE), ())


class Mounts:
    """Notes what is mounted."""

    def __init__(self) -> None:
        self.mounted: list[Path] = []

    def mount(self, name: str, mountpoint: Path, metadata: Path, source: LayerSource) -> None:
        self.mounted.append(metadata)

    def update(self, mountpoint: Path, source: LayerSource) -> None: ...

    def unmount(self, mountpoint: Path) -> None: ...


class NothingCached:
    def size(self, digest: Digest) -> int | None:
        return None


@pytest.mark.parametrize("offset", [0, len(MESSAGE) // 2, len(MESSAGE) - 1])
def test_changed_metadata_is_not_mounted(offset: int, verity_disk: Path) -> None:
    mounts = Mounts()
    with Registries(lambda host: []) as registries:
        origins, sources = Origins(lambda namespace: None, lambda name: []), Sources(registries)
        layers = Layers(
            verity_disk, origins, sources, mounts, NothingCached(), lambda places, stores: None, lambda places: None, fsverity
        )
        path = verity_disk / "layers" / LAYER.diff_id.hex() / "metadata"
        publish(path, MESSAGE, fsverity.enable)
        assert layers.restore([(LAYER, "registry.example/app:1")]) == {}
        assert mounts.mounted == [path]
        flip_on_disk(path, offset)
        later = Layers(
            verity_disk, origins, sources, mounts, NothingCached(), lambda places, stores: None, lambda places: None, fsverity
        )
        failed = later.restore([(LAYER, "registry.example/app:1")])
        assert isinstance(failed[LAYER.diff_id], NotFoundError)
        assert "pull it again" in str(failed[LAYER.diff_id])
        assert mounts.mounted == [path]
