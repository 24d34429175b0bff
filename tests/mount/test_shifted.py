"""Layers as containers in user namespaces see them: owners, rights, and what becomes of it when a layer is mounted anew."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.daemon.shifted import Shifted
from snapshotter.errors import FailedPreconditionError
from snapshotter.mount import idmapped, mounting
from snapshotter.snapshots.idmap import IdMap, Range
from tests.mount.engines import Daemon
from tests.mount.source import Builder
from tests.support import mounts

pytestmark = pytest.mark.root

BASE = 100_000
IDS = IdMap((Range(0, BASE, 65536),), (Range(0, BASE, 65536),))


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    made = Daemon()
    yield made
    made.close()


@pytest.fixture
def shifted(tmp_path: Path) -> Iterator[Shifted]:
    yield Shifted(tmp_path / "m")
    mounts.unmount_all(tmp_path / "m")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    for name, owner, mode in (("root", 0, 0o644), ("web", 33, 0o600), ("setuid", 0, 0o4755), ("beyond", 70_000, 0o644)):
        (source / name).write_text(name)
        os.chown(source / name, owner, owner)
        os.chmod(source / name, mode)
    builder = Builder()
    builder.add_tree(source)
    return builder.write(tmp_path / "image")


def owners(directory: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_uid, path.stat().st_gid) for path in directory.iterdir()}


def test_files_are_the_containers_users(daemon: Daemon, shifted: Shifted, image: Path, tmp_path: Path) -> None:
    daemon.mount(image, tmp_path / "l" / "1")
    (shown,) = shifted.show(5, [tmp_path / "l" / "1"], IDS)
    nobody = int(Path("/proc/sys/kernel/overflowuid").read_text())
    assert owners(shown) == {
        "root": (BASE, BASE),
        "web": (BASE + 33, BASE + 33),
        "setuid": (BASE, BASE),
        "beyond": (nobody, nobody),
    }
    assert (shown / "setuid").stat().st_mode & 0o7777 == 0o4755
    assert (shown / "web").read_text() == "web"
    assert owners(tmp_path / "l" / "1")["web"] == (33, 33), "the layer itself stays as it is"

    def read(name: str, uid: int) -> int:
        return subprocess.run(["cat", shown / name], user=uid, group=uid, capture_output=True).returncode

    for directory in (tmp_path, *tmp_path.parents[:-2], tmp_path / "m", tmp_path / "m" / "5"):
        directory.chmod(directory.stat().st_mode | 0o011)
    assert read("web", BASE + 33) == 0
    assert read("web", 33) != 0, "who has that number on the machine is somebody else"


def test_nothing_can_be_changed_through_it(shifted: Shifted, tmp_path: Path) -> None:
    """An ordinary layer is a directory that root may write to, but not there."""
    layer = tmp_path / "s" / "1" / "fs"
    layer.mkdir(parents=True)
    (layer / "file").write_text("as it is")
    (shown,) = shifted.show(5, [layer], IDS)
    assert owners(shown)["file"] == (BASE, BASE)
    with pytest.raises(OSError, match="Read-only"):
        (shown / "file").write_text("changed")


def test_overlayfs_stands_on_it_and_what_is_written_has_the_same_owners(
    daemon: Daemon, shifted: Shifted, image: Path, tmp_path: Path
) -> None:
    daemon.mount(image, tmp_path / "l" / "1")
    lower = tmp_path / "s" / "1" / "fs"
    lower.mkdir(parents=True)
    (lower / "ordinary").touch()
    shown = shifted.show(5, [tmp_path / "l" / "1", lower], IDS)
    upper, work, merged = (tmp_path / name for name in ("upper", "work", "merged"))
    for path in (upper, work, merged):
        path.mkdir()
    os.chown(upper, BASE, BASE)
    options = f"lowerdir={shown[0]}:{shown[1]},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=True)
    try:
        assert set(owners(merged).values()) >= {(BASE, BASE), (BASE + 33, BASE + 33)}
        (merged / "web").chmod(0o640)
        assert owners(upper) == {"web": (BASE + 33, BASE + 33)}
        shifted.hide(5)
        assert (merged / "root").read_text() == "root", "a container that runs keeps what it sees"
    finally:
        subprocess.run(["umount", merged], check=True)


def test_shown_again_it_stays_and_a_layer_that_was_mounted_anew_is_shown_anew(
    daemon: Daemon, shifted: Shifted, image: Path, tmp_path: Path
) -> None:
    layer = tmp_path / "l" / "1"
    daemon.mount(image, layer)
    (shown,) = shifted.show(5, [layer], IDS)
    before = mounting.find(shown)
    assert shifted.show(5, [layer], IDS) == [shown]
    assert mounting.find(shown) == before

    daemon.unmount(layer)
    daemon.mount(image, tmp_path / "l" / "2")
    subprocess.run(["mount", "--bind", tmp_path / "l" / "2", layer], check=True)
    try:
        assert shifted.show(5, [layer], IDS) == [shown]
        after, there = mounting.find(shown), mounting.find(layer)
        assert after is not None
        assert there is not None
        assert before is not None
        assert before.device != after.device == there.device
        assert mounts.mount_points(shown.parent) == [os.fsencode(shown)], "nothing lies below it"
    finally:
        subprocess.run(["umount", layer], check=True)


def test_hidden_nothing_is_left(daemon: Daemon, shifted: Shifted, image: Path, tmp_path: Path) -> None:
    daemon.mount(image, tmp_path / "l" / "1")
    shifted.show(5, [tmp_path / "l" / "1"], IDS)
    shifted.show(6, [tmp_path / "l" / "1"], IDS)
    assert shifted.shown() == {5, 6}
    shifted.hide(5)
    shifted.hide(5)
    assert shifted.shown() == {6}
    assert mounts.mount_points(tmp_path / "m" / "5") == []
    shifted.hide(6)
    assert list((tmp_path / "m").iterdir()) == []
    assert (tmp_path / "l" / "1" / "web").exists()


def test_all_is_hidden_at_once(daemon: Daemon, shifted: Shifted, image: Path, tmp_path: Path) -> None:
    """As the daemon does when it is told to leave owners alone again: nothing may hold a layer then."""
    daemon.mount(image, tmp_path / "l" / "1")
    for ident in (5, 6):
        shifted.show(ident, [tmp_path / "l" / "1"], IDS)
    shifted.hide_all()
    assert shifted.shown() == set()
    assert mounts.mount_points(tmp_path / "m") == []


def test_users_that_the_kernel_refuses_are_said() -> None:
    twice = [(0, BASE, 10), (5, BASE + 5, 10)]
    with (
        pytest.raises(FailedPreconditionError, match="refuses the users of a container"),
        idmapped.user_namespace(twice, twice),
    ):
        pass
