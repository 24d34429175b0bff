"""Measuring and deleting trees, whatever a container made of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snapshotter.snapshots import disk


def test_usage_counts_what_is_allocated_and_a_hard_link_once(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    os.link(tmp_path / "file", tmp_path / "dir" / "link")
    (tmp_path / "symlink").symlink_to("/usr")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 30)
    everything = [tmp_path, tmp_path / "dir", tmp_path / "file", tmp_path / "symlink", tmp_path / "sparse"]
    found = disk.usage(tmp_path)
    assert found.inodes == len(everything)
    assert found.size == sum(os.lstat(path).st_blocks * 512 for path in everything)


def test_usage_of_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        disk.usage(tmp_path / "nothing")


def deep(top: Path, levels: int) -> None:
    """Directories inside one another, deeper than a path can say and than Python may recurse."""
    current = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d" * 20, dir_fd=current)
        inner = os.open("d" * 20, os.O_RDONLY, dir_fd=current)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=inner))
        os.close(current)
        current = inner
    os.close(current)


def test_a_tree_deeper_than_any_path(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    deep(top, 1500)
    assert disk.usage(top).inodes == 1 + 2 * 1500
    disk.remove_tree(top)
    assert not top.exists()


def test_removal_takes_every_kind_of_entry_and_any_name(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "a" / "b" / "c").mkdir(parents=True)
    (top / "z" / "a").mkdir(parents=True)
    (top / ".removed-1").mkdir()
    (top / "a" / ".removed-1").mkdir()
    (top / "a" / ".removed-2").write_text("")
    os.mkfifo(top / "a" / "fifo")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("")
    (top / "a" / "link").symlink_to(outside)
    (top / "a" / "b" / os.fsdecode(b"\xff\n")).write_text("")
    disk.remove_tree(top)
    assert not top.exists()
    assert (outside / "kept").exists()


def test_removal_of_a_file_and_of_a_link_to_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "dir")
    disk.remove_tree(tmp_path / "file")
    disk.remove_tree(tmp_path / "link")
    assert os.listdir(tmp_path) == ["dir"]


def test_removal_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    (tmp_path / "top" / "inner").mkdir(parents=True)
    disk.usage(tmp_path / "top")
    disk.remove_tree(tmp_path / "top")
    assert len(os.listdir("/proc/self/fd")) == before
