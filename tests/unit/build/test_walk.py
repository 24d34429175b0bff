"""A directory on disk becomes a tree; what cannot be read is said by name."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.build.walk import FileReader, check_empty, walk
from snapshotter.errors import FailedPreconditionError, InvalidError, NotFoundError
from snapshotter.format.model import Kind
from tests.support.builds import Builder, at, names


@pytest.fixture
def builder() -> Iterator[Builder]:
    with Builder() as made:
        yield made


def read(reader: FileReader) -> bytes:
    buffer = memoryview(bytearray(1000))
    found = b""
    while count := reader.readinto(buffer):
        found += bytes(buffer[:count])
    return found


def test_types_and_attributes(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d").chmod(0o2750)
    (tmp_path / "d" / "f").write_bytes(b"data")
    (tmp_path / "d" / "f").chmod(0o640)
    os.utime(tmp_path / "d" / "f", ns=(0, -1_500_000_001))
    os.symlink(b"to\xff", tmp_path / "l")
    os.mkfifo(tmp_path / "p")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "s"))
    os.link(tmp_path / "d" / "f", tmp_path / "twin")
    os.link(tmp_path / "p", tmp_path / "p2")
    tree = walk(tmp_path)
    assert names(tree) == {b"d/", b"d/f", b"l", b"p", b"p2", b"s", b"twin"}
    file = at(tree, b"d/f")
    assert (file.kind, file.permissions, file.uid, file.mtime, file.mtime_nsec) == (
        Kind.FILE,
        0o640,
        os.getuid(),
        -2,
        499_999_999,
    )
    assert at(tree, b"d").permissions == 0o2750
    assert (at(tree, b"l").target, at(tree, b"l").permissions) == (b"to\xff", 0o777)
    assert (at(tree, b"p").kind, at(tree, b"s").kind) == (Kind.FIFO, Kind.SOCK)
    assert at(tree, b"twin") is file
    assert at(tree, b"p2") is at(tree, b"p")
    assert file.content is not None
    assert read(FileReader(file.content.path, file.content.size)) == b"data"


def test_extended_attributes(tmp_path: Path) -> None:
    os.setxattr(tmp_path, "user.root", b"r")
    (tmp_path / "f").touch()
    os.setxattr(tmp_path / "f", "user.b", b"\0\xff")
    os.setxattr(tmp_path / "f", "user.a", b"")
    tree = walk(tmp_path)
    assert tree.xattrs == {b"user.root": b"r"}
    assert at(tree, b"f").xattrs == {b"user.a": b"", b"user.b": b"\0\xff"}


def test_what_xfs_alone_lists_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = ["trusted.SGI_ACL_FILE", "trusted.SGI_ACL_DEFAULT", "user.a"]
    monkeypatch.setattr(os, "listxattr", lambda path, follow_symlinks: listed)
    monkeypatch.setattr(os, "getxattr", lambda path, key, follow_symlinks: b"v")
    assert walk(tmp_path).xattrs == {b"user.a": b"v"}


@pytest.mark.root
def test_of_a_mounted_directory_the_entries_alone_are_taken(tmp_path: Path) -> None:
    import subprocess

    (tmp_path / "m").mkdir()
    (tmp_path / "before").touch()
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path / "m"], check=True)
    try:
        (tmp_path / "m" / "f").write_bytes(b"x")
        (tmp_path / "m" / "d").mkdir()
        (tmp_path / "m" / "d" / "deeper").touch()
        assert names(walk(tmp_path)) == {b"before", b"m/", b"m/f", b"m/d/"}
    finally:
        subprocess.run(["umount", tmp_path / "m"], check=True)


def test_what_is_no_directory(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such directory"):
        walk(tmp_path / "none")
    (tmp_path / "f").touch()
    with pytest.raises(InvalidError, match="not a directory"):
        walk(tmp_path / "f")


def test_a_symlink_to_a_directory_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").touch()
    os.symlink("d", tmp_path / "l")
    assert names(walk(tmp_path / "l")) == {b"f"}


@pytest.mark.parametrize("size", [3, 5, 0])
def test_a_file_that_changes_its_size_is_an_error_not_other_data(tmp_path: Path, builder: Builder, size: int) -> None:
    path = tmp_path / "changing"
    path.write_bytes(b"x" * size)
    with pytest.raises(FailedPreconditionError, match=r"changing changed while it was read"):
        read(FileReader(os.fsencode(path), 4))


def test_a_file_that_is_written_to_without_changing_its_size(tmp_path: Path) -> None:
    """Before it is opened, and between its first and its last byte."""
    path = tmp_path / "f"
    path.write_bytes(b"x" * 10)
    content = walk(tmp_path).names()[b"f"].content
    assert content is not None
    reader = FileReader(content.path, content.size, content.stamp)
    buffer = memoryview(bytearray(20))
    assert reader.readinto(buffer[:5]) == 5
    before = os.stat(path).st_ctime_ns
    while os.stat(path).st_ctime_ns == before:  # the kernel's clock ticks every few milliseconds
        path.write_bytes(b"y" * 10)
    assert reader.readinto(buffer) == 5
    with pytest.raises(FailedPreconditionError, match="f changed while it was read"):
        reader.readinto(buffer)
    with pytest.raises(FailedPreconditionError, match="f changed while it was read"):
        FileReader(content.path, content.size, content.stamp)


def test_files_of_proc_are_an_error_not_an_empty_file(builder: Builder) -> None:
    """They say that they have no bytes."""
    with pytest.raises(FailedPreconditionError, match=r"/proc/sys/.* changed while it was read, or is no ordinary file"):
        builder.directory(Path("/proc/sys/kernel/random"))


def test_an_empty_file_that_is_filled_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.touch()
    content = walk(tmp_path).names()[b"f"].content
    assert content is not None
    check_empty(content.path, content.stamp)
    path.write_bytes(b"x")
    with pytest.raises(FailedPreconditionError, match="f changed while it was read"):
        check_empty(content.path, content.stamp)


def test_a_file_that_became_something_else(tmp_path: Path) -> None:
    path = tmp_path / "f"
    os.symlink("/etc/passwd", path)
    with pytest.raises(FailedPreconditionError, match="cannot read"):
        FileReader(os.fsencode(path), 4)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FailedPreconditionError, match="changed while it was read"):
        FileReader(os.fsencode(path), 4)
    path.unlink()
    with pytest.raises(FailedPreconditionError, match="No such file"):
        FileReader(os.fsencode(path), 4)


def test_a_failed_build_names_the_file(tmp_path: Path, builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shrinking").write_bytes(b"x" * 5000)
    real = os.readv

    def short(fd: int, buffers: list[memoryview]) -> int:
        os.truncate(tmp_path / "shrinking", 100)
        return real(fd, buffers)

    monkeypatch.setattr(os, "readv", short)
    with pytest.raises(FailedPreconditionError, match="shrinking changed"):
        builder.directory(tmp_path)


def test_a_path_beyond_the_systems_limit(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 255, dir_fd=fd)
        below = os.open("d" * 255, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    with pytest.raises(InvalidError, match="longer than the system's limit"):
        walk(tmp_path)
