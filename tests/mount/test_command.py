"""`puzzlefs mount` with upstream's options: pinned to a digest, writable, telling an init fifo."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.build.layout import build_layout
from snapshotter.registry.layout import LayoutStore
from tests.support import mounts
from tests.support.filesystems import filesystem
from tests.support.processes import Service
from tests.support.snapshotter import program, puzzlefs

USAGE, NOT_FOUND, CORRUPT, STATE = 2, 3, 5, 7
PATIENCE = 30


@pytest.fixture
def built(tmp_path: Path) -> tuple[str, str]:
    """A small image as OCI_DIR:TAG, and its manifest's fs-verity digest."""
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "file").write_bytes(b"of the image")
    (tree / "d" / "gone").write_bytes(b"")
    done = build_layout(tree, LayoutStore(tmp_path / "image", durable=False), "v")
    return f"{tmp_path}/image:v", done.verity.hex()


@pytest.fixture
def where(tmp_path: Path) -> Iterator[Path]:
    """A directory to mount on; what is left mounted there goes."""
    directory = tmp_path / "m"
    directory.mkdir()
    yield directory
    mounts.unmount_all(directory)


def said(fifo: Path) -> tuple[list[str], threading.Thread]:
    """What is written to the fifo, once the thread has ended."""
    heard: list[str] = []
    thread = threading.Thread(target=lambda: heard.append(fifo.read_text()))
    thread.start()
    return heard, thread


def test_the_image_with_a_digest_and_no_other(built: tuple[str, str], where: Path) -> None:
    image, digest = built
    for wrong, status in ((digest[1:] + digest[0], CORRUPT), (digest[:-1], USAGE), ("sha256:" + digest, USAGE)):
        done = puzzlefs("mount", "--digest", wrong, image, where, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (status, 1)
    puzzlefs("mount", "-d", digest.upper(), image, where)
    assert (where / "file").read_bytes() == b"of the image"
    puzzlefs("umount", where)


def test_a_writable_mount(built: tuple[str, str], where: Path) -> None:
    """Laid out as upstream's: DIR/ro, DIR/upper and DIR/work, hidden while it is mounted and kept afterwards."""
    puzzlefs("mount", "-w", built[0], where)
    assert sorted(os.listdir(where)) == ["d", "file"]
    (where / "file").write_bytes(b"changed")
    (where / "d" / "gone").unlink()
    (where / "new").mkdir()
    done = puzzlefs("mount", "-w", built[0], where, check=False)
    assert (done.returncode, "is mounted already" in done.stderr) == (STATE, True)
    puzzlefs("umount", where)
    assert mounts.mount_points(where) == []
    assert sorted(os.listdir(where)) == ["ro", "upper", "work"]
    assert (where / "upper" / "file").read_bytes() == b"changed"
    puzzlefs("mount", "-w", built[0], where)
    assert (sorted(os.listdir(where)), os.listdir(where / "d")) == (["d", "file", "new"], [])
    assert (where / "file").read_bytes() == b"changed"
    puzzlefs("umount", where)


def test_changes_that_are_kept_elsewhere(built: tuple[str, str], where: Path, tmp_path: Path) -> None:
    """On the same file system and on another one, with a name that mount options could misread."""
    with filesystem("tmpfs", tmp_path / "fs") as other:
        for upper in (tmp_path / "a,b:c\\d", other / "upper"):
            upper.mkdir()
            puzzlefs("mount", "--persist", upper, built[0], where)
            (where / "new").write_bytes(b"kept")
            puzzlefs("umount", where)
            assert (upper / "new").read_bytes() == b"kept"
            puzzlefs("mount", "-p", upper, built[0], where)
            assert (where / "new").read_bytes() == b"kept"
            puzzlefs("umount", where)


@pytest.mark.parametrize("options", [["-f", "-w"], ["-p", "{tmp}/missing"], ["-p", "{tmp}/m/ro"]], ids=" ".join)
def test_a_writable_mount_that_cannot_be(built: tuple[str, str], where: Path, tmp_path: Path, options: list[str]) -> None:
    (where / "ro").mkdir()
    done = puzzlefs("mount", *(option.format(tmp=tmp_path) for option in options), built[0], where, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (USAGE, 1)
    assert mounts.mount_points(where) == []


def test_an_upper_directory_that_overlayfs_refuses(built: tuple[str, str], where: Path, tmp_path: Path) -> None:
    """The image is unmounted again."""
    puzzlefs("mount", "-w", built[0], where)
    (where / "upper-in-overlay").mkdir()
    (tmp_path / "second").mkdir()
    done = puzzlefs("mount", "-p", where / "upper-in-overlay", built[0], tmp_path / "second", check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (STATE, 1)
    assert mounts.mount_points(tmp_path / "second") == []
    puzzlefs("umount", where)


@pytest.mark.parametrize("options", [[], ["-w"]], ids=["plain", "writable"])
def test_the_init_fifo_is_told_of_success(built: tuple[str, str], where: Path, tmp_path: Path, options: list[str]) -> None:
    os.mkfifo(tmp_path / "fifo")
    heard, thread = said(tmp_path / "fifo")
    puzzlefs("mount", "-i", tmp_path / "fifo", *options, built[0], where)
    thread.join(PATIENCE)
    assert heard == ["s"]
    puzzlefs("umount", where)


def test_the_init_fifo_of_a_mount_in_the_foreground(built: tuple[str, str], where: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    service = Service([program("puzzlefs"), "mount", "-f", "-i", tmp_path / "fifo", built[0], where], tmp_path / "log")
    assert (tmp_path / "fifo").read_text() == "s"
    assert (where / "file").read_bytes() == b"of the image"
    puzzlefs("umount", where)
    assert service.process.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    "arguments",
    [["{tmp}/image:none", "{tmp}/m"], ["{tmp}/image:v", "{tmp}/missing"], ["-w", "-f", "{tmp}/image:v", "{tmp}/m"]],
    ids=" ".join,
)
def test_the_init_fifo_is_told_of_every_failure(
    built: tuple[str, str], where: Path, tmp_path: Path, arguments: list[str]
) -> None:
    os.mkfifo(tmp_path / "fifo")
    heard, thread = said(tmp_path / "fifo")
    done = puzzlefs("mount", "-i", tmp_path / "fifo", *(word.format(tmp=tmp_path) for word in arguments), check=False)
    thread.join(PATIENCE)
    assert (done.returncode > 0, heard) == (True, ["f"])


def test_what_is_no_fifo_is_left_alone(built: tuple[str, str], where: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for path in (tmp_path / "file", tmp_path / "missing", tmp_path):
        done = puzzlefs("mount", "-i", path, built[0], where, check=False)
        assert (done.returncode, "is no fifo" in done.stderr) == (USAGE, True)
    assert (tmp_path / "file").read_text() == "precious"
    assert not (tmp_path / "missing").exists()
    assert subprocess.run(["mountpoint", "-q", where]).returncode != 0
