"""Layers stacked by overlayfs, as a container's root is: compared with overlayfs over the same directories."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
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


_INOTIFY = struct.Struct("iIII")
_EVENTS = {0x2: "modify", 0x4: "attrib", 0x8: "written", 0x40: "from", 0x80: "to", 0x100: "create", 0x200: "delete"}


@contextlib.contextmanager
def watched(directory: Path) -> Iterator[Callable[[], list[tuple[str, str]]]]:
    """What inotify(7) says of a directory: (what, name), since it was asked last."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert watch >= 0
    assert libc.inotify_add_watch(watch, os.fsencode(directory), sum(_EVENTS)) >= 0

    def events() -> list[tuple[str, str]]:
        found = []
        with contextlib.suppress(BlockingIOError):
            data = os.read(watch, 1 << 16)
            while data:
                _, mask, _, length = _INOTIFY.unpack_from(data)
                name = data[_INOTIFY.size : _INOTIFY.size + length].rstrip(b"\0").decode()
                found += [(what, name) for bit, what in _EVENTS.items() if mask & bit]
                data = data[_INOTIFY.size + length :]
        return found

    try:
        yield events
    finally:
        os.close(watch)


def happenings(root: Path) -> list[list[tuple[str, str]]]:
    """What inotify says of changes in a stacked directory."""
    found = []
    with watched(root / "kept") as events:
        (root / "kept" / "below").read_bytes()
        found.append(events())
        with open(root / "kept" / "below", "a") as file:  # copied up
            file.write("more")
        found.append(events())
        (root / "kept" / "below").chmod(0o600)
        (root / "kept" / "below").rename(root / "kept" / "renamed")
        (root / "kept" / "new").write_text("new")
        (root / "kept" / "renamed").unlink()
        found.append(events())
    return found


def test_inotify_says_what_it_says_of_native_layers(stacked: Path, layers: tuple[Path, Path], tmp_path: Path) -> None:
    with overlay(tmp_path / "native", list(layers)) as native:
        expected = happenings(native)
    assert happenings(stacked) == expected
    assert ("written", "below") in expected[1]


def locks(path: Path) -> list[object]:
    """What another process gets that asks for locks on `path` while this one has one."""
    ask = """
import fcntl, sys
with open(sys.argv[1], sys.argv[2]) as file:
    for kind in (fcntl.LOCK_SH, fcntl.LOCK_EX):
        try:
            fcntl.lockf(file, kind | fcntl.LOCK_NB)
            print("granted")
        except OSError as error:
            print(error.errno)
"""
    found: list[object] = []
    for mode, kind in (("rb", fcntl.LOCK_SH), ("r+b", fcntl.LOCK_EX)):
        with open(path, mode) as file:
            fcntl.lockf(file, kind | fcntl.LOCK_NB)
            for other in ("rb", "r+b"):
                done = subprocess.run([sys.executable, "-c", ask, path, other], capture_output=True, text=True, check=True)
                found.append((mode, other, done.stdout.split()))
    return found


def test_locks_are_those_of_native_layers(stacked: Path, layers: tuple[Path, Path], tmp_path: Path) -> None:
    with overlay(tmp_path / "native", list(layers)) as native:
        expected = locks(native / "merged" / "below")
    assert locks(stacked / "merged" / "below") == expected
    assert expected[-1] == ("r+b", "r+b", [str(errno.EAGAIN)] * 2)
