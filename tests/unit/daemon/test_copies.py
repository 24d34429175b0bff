"""A layer that is wanted several times at once: mounts of its own, found again after a restart, and gone with the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapshotter.chunkstore.publish import publish
from snapshotter.daemon.layers import Layers
from snapshotter.daemon.origin import Origins
from snapshotter.daemon.sources import LayerSource, Sources
from snapshotter.errors import NotFoundError, PuzzlefsError, UnavailableError
from snapshotter.format.annotations import MetadataLayer, PackPlace
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.model import Inode, Kind, RootfsContent
from snapshotter.format.verity import verity_digest
from snapshotter.format.writer import encode
from snapshotter.registry.registries import Registries

MESSAGE = encode(RootfsContent([[Inode(1, Kind.DIR)]], []))
PACK = PackPlace(sha256(b"pack"), 10, 5)
LAYER = MetadataLayer(sha256(b"stored"), sha256(MESSAGE), verity_digest(MESSAGE), (PACK,), profile=PACK.pack)
IMAGE = "registry.example/app:1"


class Mounts:
    """Those that there are, over restarts of the daemon."""

    def __init__(self) -> None:
        self.at: dict[Path, LayerSource] = {}
        self.made = 0
        self.refuse: Exception | None = None

    def mount(self, name: str, mountpoint: Path, metadata: Path, source: LayerSource) -> None:
        if self.refuse is not None:
            raise self.refuse
        assert mountpoint.is_dir()
        assert metadata.read_bytes() == MESSAGE
        self.made += mountpoint not in self.at
        self.at[mountpoint] = source

    def update(self, mountpoint: Path, source: LayerSource) -> None:
        assert mountpoint in self.at
        self.at[mountpoint] = source

    def unmount(self, mountpoint: Path) -> None:
        self.at.pop(mountpoint, None)


class NothingCached:
    """A cache that has nothing."""

    def size(self, digest: Digest) -> int | None:
        return None


@pytest.fixture
def mounts() -> Mounts:
    return Mounts()


@pytest.fixture
def start(tmp_path: Path, mounts: Mounts) -> Iterator[Callable[[], Layers]]:
    """Starts a daemon, on a node that has the layer's metadata and needs no registry."""
    publish(tmp_path / "layers" / LAYER.diff_id.hex() / "metadata", MESSAGE)
    with Registries() as registries:

        def started() -> Layers:
            origins, sources = Origins(lambda namespace: None, lambda name: []), Sources(registries)
            return Layers(tmp_path, origins, sources, mounts, NothingCached(), lambda places, stores: None, lambda places: None)

        yield started


@pytest.fixture
def layers(start: Callable[[], Layers]) -> Layers:
    """Those of a first daemon, the layer mounted."""
    layers = start()
    assert layers.restore([(LAYER, IMAGE)]) == {}
    return layers


def test_copies_are_made_once_and_have_places_of_their_own(layers: Layers, mounts: Mounts) -> None:
    for count in (2, 1, 2):
        layers.ensure_copies(LAYER.diff_id, count)
    expected = {layers.mountpoint(LAYER.diff_id, copy) for copy in range(3)}
    assert len(expected) == 3
    assert mounts.at.keys() == expected
    assert mounts.made == 3


def test_only_the_first_mount_fetches_the_profile(start: Callable[[], Layers], mounts: Mounts) -> None:
    """What a start reads is fetched into the cache that all of them share."""
    layers = start()
    layers.ensure(LAYER, IMAGE, "")
    layers.ensure_copies(LAYER.diff_id, 1)
    assert [mounts.at[layers.mountpoint(LAYER.diff_id, copy)].profile for copy in range(2)] == [PACK.pack, None]


def test_copies_learn_where_the_chunks_are_too(layers: Layers, mounts: Mounts) -> None:
    layers.ensure_copies(LAYER.diff_id, 1)
    layers.ensure(LAYER, "registry.example/app:2", "")
    for source in mounts.at.values():
        assert source.images == ("registry.example/app:2", IMAGE)


def test_a_layer_that_is_not_mounted_has_no_copies(start: Callable[[], Layers], mounts: Mounts) -> None:
    with pytest.raises(NotFoundError, match="is not mounted"):
        start().ensure_copies(LAYER.diff_id, 1)
    assert mounts.at == {}


def test_a_restart_goes_on_with_the_same_mounts(start: Callable[[], Layers], layers: Layers, mounts: Mounts) -> None:
    """containers/storage has no other name for them than the one path; a container that runs has them as its root."""
    layers.ensure_copies(LAYER.diff_id, 2)
    before = set(mounts.at)
    later = start()
    later.restore([(LAYER, IMAGE)])
    later.ensure_copies(LAYER.diff_id, 2)
    assert set(mounts.at) == before
    assert mounts.made == 3


@pytest.mark.parametrize("restarted", [False, True])
def test_all_of_them_go_with_the_layer(
    restarted: bool, tmp_path: Path, start: Callable[[], Layers], layers: Layers, mounts: Mounts
) -> None:
    """Also those that an earlier daemon made and this one was not asked for."""
    layers.ensure_copies(LAYER.diff_id, 2)
    (start() if restarted else layers).release(LAYER.diff_id)
    assert mounts.at == {}
    assert list((tmp_path / "l").iterdir()) == []
    with pytest.raises(NotFoundError):
        layers.mountpoint(LAYER.diff_id, 1)


def test_copies_of_another_layer_stay(layers: Layers, mounts: Mounts, tmp_path: Path) -> None:
    """Whose number begins with the same digits."""
    other = tmp_path / "l" / f"{layers.mountpoint(LAYER.diff_id).name}0.1"
    other.mkdir()
    layers.release(LAYER.diff_id)
    assert list((tmp_path / "l").iterdir()) == [other]


def test_a_copy_that_cannot_be_mounted_is_tried_again(layers: Layers, mounts: Mounts) -> None:
    failures: list[tuple[Exception, type[PuzzlefsError], str]] = [
        (UnavailableError("no answer"), UnavailableError, "no answer"),
        (OSError(28, "No space left on device", "/l/1.1"), UnavailableError, "/l/1.1: No space left"),
    ]
    for failure, category, text in failures:
        mounts.refuse = failure
        with pytest.raises(category, match=text):
            layers.ensure_copies(LAYER.diff_id, 1)
    mounts.refuse = None
    layers.ensure_copies(LAYER.diff_id, 1)
    assert layers.mountpoint(LAYER.diff_id, 1) in mounts.at


def test_a_start_takes_off_copies_whose_layer_is_lost(
    tmp_path: Path, start: Callable[[], Layers], layers: Layers, mounts: Mounts
) -> None:
    layers.ensure_copies(LAYER.diff_id, 2)
    (tmp_path / "layers" / LAYER.diff_id.hex() / "number").unlink()
    later = start()
    later.restore([])
    assert mounts.at == {}
    assert list((tmp_path / "l").iterdir()) == []
