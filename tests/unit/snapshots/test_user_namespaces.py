"""Snapshots of containers in user namespaces: layers with other owners, for as long as the snapshot is there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from snapshotter.errors import InvalidError, NotFoundError, UnavailableError, UnsupportedError
from snapshotter.snapshots.idmap import GID_LABEL, UID_LABEL, IdMap, Range
from snapshotter.snapshots.model import Mount
from snapshotter.snapshots.snapshotter import Snapshotter
from tests.support.layers import DirectoryLayers

USERS = {UID_LABEL: "0:100000:65536", GID_LABEL: "0:200000:65536"}
IDS = IdMap((Range(0, 100000, 65536),), (Range(0, 200000, 65536),))


class Recorded:
    """`ShiftedMounts` that mounts nothing."""

    def __init__(self, places: Path) -> None:
        self.places = places
        self.now: dict[int, tuple[Sequence[Path], IdMap]] = {}
        self.error: Exception | None = None

    def show(self, ident: int, directories: Sequence[Path], ids: IdMap) -> list[Path]:
        if self.error is not None:
            raise self.error
        self.now[ident] = directories, ids
        return [self.places / str(ident) / str(number) for number in range(len(directories))]

    def hide(self, ident: int) -> None:
        if self.error is not None:
            raise self.error
        self.now.pop(ident, None)

    def shown(self) -> set[int]:
        return set(self.now)


@pytest.fixture
def shifted(tmp_path: Path) -> Recorded:
    return Recorded(tmp_path / "root" / "m")


@pytest.fixture
def owners(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Whom files were given to: only root may give them away."""
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: given.append((uid, gid)))
    return given


@pytest.fixture
def snapshotter(
    tmp_path: Path, layers: DirectoryLayers, shifted: Recorded, owners: list[tuple[int, int]]
) -> Iterator[Snapshotter]:
    opened = Snapshotter(tmp_path / "root", layers, shifted)
    opened.recover()
    for number, name in enumerate(("below", "base")):
        opened.prepare("key", "below" if number else "", {})
        opened.commit(name, "key", {})
    yield opened
    opened.close()


def option(found: Sequence[Mount], name: str) -> str:
    (mount,) = found
    (value,) = [each.removeprefix(f"{name}=") for each in mount.options if each.startswith(f"{name}=")]
    return value


def test_its_layers_are_shown_with_its_owners_and_its_own_directory_is_its_roots(
    snapshotter: Snapshotter, shifted: Recorded, owners: list[tuple[int, int]]
) -> None:
    found = snapshotter.prepare("container", "base", USERS)
    ((ident, (directories, ids)),) = shifted.now.items()
    assert ids == IDS
    assert option(found, "lowerdir") == f"{shifted.places}/{ident}/0:{shifted.places}/{ident}/1"
    assert [path.parent.name for path in directories] == ["2", "1"], "topmost first"
    assert option(found, "upperdir").endswith(f"/s/{ident}/fs"), "what it writes has its owners already"
    assert not any(each.startswith(("uidmap=", "gidmap=", "xino=")) for each in found[0].options)
    assert owners[-1] == (100000 + os.getuid(), 200000 + os.getgid())
    assert snapshotter.mounts("container") == found


def test_a_view_of_one_layer(snapshotter: Snapshotter, shifted: Recorded) -> None:
    (mount,) = snapshotter.view("v", "below", USERS)
    assert (mount.type, mount.options[0]) == ("bind", "ro")
    assert Path(mount.source).is_relative_to(shifted.places)


def test_without_labels_nothing_is_shown(snapshotter: Snapshotter, shifted: Recorded) -> None:
    found = snapshotter.prepare("container", "base", {})
    assert shifted.now == {}
    assert str(shifted.places) not in option(found, "lowerdir")


@pytest.mark.parametrize("committed", [False, True])
def test_it_ends_with_the_snapshot(snapshotter: Snapshotter, shifted: Recorded, committed: bool) -> None:
    snapshotter.prepare("container", "base", USERS)
    snapshotter.prepare("other", "base", USERS)
    if committed:
        snapshotter.commit("image", "container", {})
    else:
        snapshotter.remove("container")
        snapshotter.cleanup()
    assert len(shifted.now) == 1


def test_what_a_crash_left_ends_at_the_next_start(snapshotter: Snapshotter, shifted: Recorded) -> None:
    shifted.now[77] = (), IDS
    snapshotter.recover()
    assert shifted.now == {}


def test_what_cannot_be_hidden_now_is_tried_again(snapshotter: Snapshotter, shifted: Recorded) -> None:
    snapshotter.prepare("container", "base", USERS)
    snapshotter.remove("container")
    shifted.error = UnavailableError("busy")
    snapshotter.cleanup()
    assert len(shifted.now) == 1
    shifted.error = None
    snapshotter.cleanup()
    assert shifted.now == {}


def test_where_it_cannot_be_shown_there_is_no_snapshot(snapshotter: Snapshotter, shifted: Recorded) -> None:
    shifted.error = UnsupportedError("Linux 6.12 can")
    with pytest.raises(UnsupportedError):
        snapshotter.prepare("container", "base", USERS)
    with pytest.raises(NotFoundError):
        snapshotter.stat("container")
    with pytest.raises(InvalidError, match="uidmapping"):
        snapshotter.prepare("container", "base", {UID_LABEL: "x"})
    with pytest.raises(NotFoundError):
        snapshotter.stat("container")


def test_where_containerd_copies_images_itself_labels_say_nothing_new(tmp_path: Path, layers: DirectoryLayers) -> None:
    opened = Snapshotter(tmp_path / "root", layers)
    opened.prepare("key", "", {})
    opened.commit("copy", "key", {})
    assert option(opened.prepare("container", "copy", USERS), "lowerdir").endswith("/s/1/fs")
    opened.close()
