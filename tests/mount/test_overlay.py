"""Layers stacked by overlayfs, as a container's root is: compared with overlayfs over the same directories."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.engines import Engine
from tests.mount.source import OPAQUE, Builder
from tests.support.trees import differences, look


def make_base(root: Path) -> None:
    """The lower layer."""
    for directory in ("kept", "opaque", "gone", "merged"):
        (root / directory).mkdir(parents=True)
        (root / directory / "below").write_text(f"below in {directory}")
    (root / "file").write_text("from below")
    (root / "hidden").write_text("never to be seen")
    os.setxattr(root / "kept", "user.mark", b"1")
    for path in root.rglob("*"):
        os.utime(path, ns=(10**18, 10**18))


def make_upper(root: Path) -> None:
    """The layer above: a whiteout for a file and for a directory, an opaque directory, a merged one."""
    root.mkdir()
    for name in ("hidden", "gone"):
        os.mknod(root / name, stat.S_IFCHR, 0)
    for directory in ("opaque", "merged"):
        (root / directory).mkdir()
        (root / directory / "above").write_text(f"above in {directory}")
    os.setxattr(root / "opaque", OPAQUE, b"y")
    (root / "file").write_text("from above")


@contextlib.contextmanager
def overlay(directory: Path, lower: list[Path]) -> Iterator[Path]:
    """overlayfs over `lower`, top first."""
    for name in ("upper", "work", "root"):
        (directory / name).mkdir(parents=True)
    layers = ":".join(map(str, lower))
    options = f"lowerdir={layers},upperdir={directory}/upper,workdir={directory}/work,index=off"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, directory / "root"], check=True)
    try:
        yield directory / "root"
    finally:
        subprocess.run(["umount", directory / "root"], check=True)


@pytest.fixture
def layers(tmp_path: Path) -> tuple[Path, Path]:
    """The two layers as directories."""
    make_base(tmp_path / "base")
    make_upper(tmp_path / "above")
    return tmp_path / "above", tmp_path / "base"


@pytest.fixture
def stacked(engine: Engine, layers: tuple[Path, Path], tmp_path: Path) -> Iterator[Path]:
    """The two layers, mounted by the engine and stacked."""
    with contextlib.ExitStack() as stack:
        points = []
        for number, layer in enumerate(layers):
            builder = Builder()
            builder.add_tree(layer)
            image = builder.write(tmp_path / f"image{number}")
            points.append(stack.enter_context(engine.mounted(image, tmp_path / f"l{number}", as_layer=True)).path)
        yield stack.enter_context(overlay(tmp_path / "stack", points))


def test_whiteouts_and_opaque_directories(stacked: Path, layers: tuple[Path, Path], tmp_path: Path) -> None:
    with overlay(tmp_path / "native", list(layers)) as native:
        expected, found = look(os.fsencode(native)), look(os.fsencode(stacked))
    del expected[b"."], found[b"."]  # the upper directories, made at different times
    assert differences(expected, found) == []
    assert sorted(os.listdir(stacked)) == ["file", "kept", "merged", "opaque"]
    assert os.listdir(stacked / "opaque") == ["above"]
    assert sorted(os.listdir(stacked / "merged")) == ["above", "below"]


def test_copy_up_rename_and_removal(stacked: Path) -> None:
    with open(stacked / "file", "a") as file:
        file.write(" and more")
    assert (stacked / "file").read_text() == "from above and more"
    assert os.getxattr(stacked / "kept", "user.mark") == b"1"
    (stacked / "kept" / "below").rename(stacked / "kept" / "renamed")
    assert (stacked / "kept" / "renamed").read_text() == "below in kept"
    assert (stacked / "kept" / "renamed").stat().st_mtime_ns == 10**18
    (stacked / "merged" / "below").unlink()
    assert os.listdir(stacked / "merged") == ["above"]
    (stacked / "kept").chmod(0o700)
    assert os.getxattr(stacked / "kept", "user.mark") == b"1"
    (stacked / "hidden").write_text("new")
    assert (stacked / "hidden").read_text() == "new"


def test_a_layer_shows_whiteouts_to_overlayfs_only(engine: Engine, layers: tuple[Path, Path], tmp_path: Path) -> None:
    builder = Builder()
    builder.add_tree(layers[0])
    image = builder.write(tmp_path / "image")
    with engine.mounted(image, tmp_path / "layer", as_layer=True) as mount:
        assert stat.S_ISCHR((mount.path / "hidden").lstat().st_mode)
        assert (mount.path / "hidden").lstat().st_rdev == 0
        assert os.getxattr(mount.path / "opaque", OPAQUE) == b"y"
        assert os.listxattr(mount.path) == []
    with engine.mounted(image, tmp_path / "whole") as mount:
        assert sorted(os.listdir(mount.path)) == ["file", "merged", "opaque"]
        assert not (mount.path / "hidden").exists()
        assert os.listxattr(mount.path / "opaque") == []
