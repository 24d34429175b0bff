"""Extraction: everything that the format holds, nothing outside the directory."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from snapshotter.build import extract as extract_module
from snapshotter.build.extract import extract
from snapshotter.chunkstore.base import ChunkMissingError
from snapshotter.errors import AlreadyExistsError, CorruptError, FailedPreconditionError
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.model import DirEntry, FileChunk, Inode, Kind, RootfsContent
from snapshotter.format.rootfs import Rootfs
from snapshotter.format.writer import encode
from tests.support.builds import Builder
from tests.support.images import SECOND, Layer


@pytest.fixture
def builder() -> Iterator[Builder]:
    with Builder() as made:
        yield made


def rootfs_of(inodes: Sequence[Inode]) -> Rootfs:
    return Rootfs.open(encode(RootfsContent((inodes,), ())))


def mine(**more: object) -> dict[str, object]:
    return {"owner": (os.getuid(), os.getgid()), **more}


def test_links_times_and_modes_for_any_user(builder: Builder, tmp_path: Path) -> None:
    layer = Layer()
    layer.directory(b"./", mtime=5 * SECOND)
    layer.directory(b"closed", 0o500, mtime=7 * SECOND + 1, **mine())
    layer.file(b"closed/f", b"x" * 5000, 0o4711, mtime=8 * SECOND + 9, **mine(xattrs={"user.a": b"1"}))
    layer.hardlink(b"twin", b"closed/f", **mine(xattrs={"user.a": b"1"}))
    layer.symlink(b"l", b"/etc/passwd", mtime=9 * SECOND, **mine())
    layer.fifo(b"p", 0o600, **mine())
    tree = builder.tar(layer.tar())
    tree.uid, tree.gid = os.getuid(), os.getgid()
    rootfs = builder.rootfs(tree)
    done = extract(rootfs, builder, tmp_path / "new" / "out")
    rootfs.close()
    out = tmp_path / "new" / "out"
    assert (done.problems, done.inodes, done.bytes) == ([], 5, 5000)
    status = (out / "twin").stat()
    assert (status.st_nlink, stat.S_IMODE(status.st_mode), status.st_ino) == (2, 0o644, (out / "closed" / "f").stat().st_ino)
    assert (out / "twin").read_bytes() == b"x" * 5000
    assert os.getxattr(out / "twin", "user.a") == b"1"
    assert (out / "closed").stat().st_mtime_ns == 7 * SECOND + 1
    assert stat.S_IMODE((out / "closed").stat().st_mode) == 0o500
    assert os.readlink(out / "l") == "/etc/passwd"
    assert (out / "l").lstat().st_mtime_ns == 9 * SECOND
    assert out.stat().st_mtime_ns == 5 * SECOND
    (out / "closed").chmod(0o700)


def test_a_directory_that_holds_something_is_left_alone(builder: Builder, tmp_path: Path) -> None:
    (tmp_path / "theirs").touch()
    rootfs = builder.rootfs(builder.tar(Layer().tar()))
    with pytest.raises(AlreadyExistsError, match="is not empty"):
        extract(rootfs, builder, tmp_path)
    (tmp_path / "theirs").unlink()
    extract(rootfs, builder, tmp_path)
    with pytest.raises(FailedPreconditionError, match="cannot extract into"):
        extract(rootfs, builder, "/dev/null/x")
    rootfs.close()


def test_symlinks_are_never_followed_while_somebody_else_works_there(
    builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory `d` is exchanged for a symlink between its making and the writing of what is in it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    layer = Layer()
    layer.directory(b"d", **mine())
    layer.file(b"d/f", b"x", **mine())
    rootfs = builder.rootfs(builder.tar(layer.tar()))
    real = os.mkdir

    def exchanging(name: bytes, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        real(name, mode, dir_fd=dir_fd)
        if name == b"d":
            os.rmdir(name, dir_fd=dir_fd)
            os.symlink(outside, name, dir_fd=dir_fd)

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "mkdir", exchanging)
    with pytest.raises(FailedPreconditionError, match="changed while it was written"):
        extract(rootfs, builder, tmp_path / "out")
    assert list(outside.iterdir()) == []
    rootfs.close()


def test_what_may_not_be_set_is_reported_and_lends_no_rights(
    builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = Layer()
    layer.file(b"setuid", b"x", 0o6755, owner=(12345, 12345), xattrs={"security.x": b"1"})
    layer.character_device(b"device", (1, 3))
    rootfs = builder.rootfs(builder.tar(layer.tar()))

    def denied(*arguments: object, **more: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    for name in ("chown", "setxattr", "mknod"):
        monkeypatch.setattr(os, name, denied)
    monkeypatch.setattr(extract_module, "_PROBLEMS_LISTED", 2)
    done = extract(rootfs, builder, tmp_path / "out")
    rootfs.close()
    assert stat.S_IMODE((tmp_path / "out" / "setuid").stat().st_mode) == 0o755
    assert done.problem_count >= 3
    assert len(done.problems) == 2
    assert any("Operation not permitted" in line for line in done.problems)
    assert not (tmp_path / "out" / "device").exists()


def test_depth_beyond_path_max(builder: Builder, tmp_path: Path) -> None:
    inodes = [Inode(n, Kind.DIR, entries=[DirEntry(n + 1, b"d" * 100)]) for n in range(1, 120)]
    rootfs = rootfs_of([*inodes, Inode(120, Kind.DIR)])
    assert extract(rootfs, builder, tmp_path / "out").inodes == 120
    rootfs.close()


def test_a_cycle_of_directories_is_refused(builder: Builder, tmp_path: Path) -> None:
    inodes = [Inode(1, Kind.DIR, entries=[DirEntry(2, b"a")]), Inode(2, Kind.DIR, entries=[DirEntry(1, b"up")])]
    rootfs = rootfs_of(inodes)
    with pytest.raises(CorruptError, match="more than one parent"):
        extract(rootfs, builder, tmp_path / "out")
    rootfs.close()


class OneChunk:
    name = "one"

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def get(self, wanted: Sequence[object]) -> list[bytes]:
        return [self._raw for _ in wanted]

    def has(self, digest: Digest) -> bool:
        return True

    def close(self) -> None:
        pass


def test_a_file_beyond_its_chunk_is_corrupt(tmp_path: Path) -> None:
    chunk = FileChunk(sha256(b"x"), 0, 10)
    rootfs = rootfs_of([Inode(1, Kind.DIR, entries=[DirEntry(2, b"f")]), Inode(2, Kind.FILE, chunks=[chunk])])
    with pytest.raises(CorruptError, match="beyond the end of its chunk"):
        extract(rootfs, OneChunk(b"short"), tmp_path / "out")
    rootfs.close()


def test_a_missing_chunk_says_for_which_file(builder: Builder, tmp_path: Path) -> None:
    chunk = FileChunk(sha256(b"never built"), 0, 10)
    rootfs = rootfs_of([Inode(1, Kind.DIR, entries=[DirEntry(2, b"f")]), Inode(2, Kind.FILE, chunks=[chunk])])
    with pytest.raises(ChunkMissingError) as caught:
        extract(rootfs, builder, tmp_path / "out")
    assert any("out/f was written" in note for note in caught.value.__notes__)
    rootfs.close()


@pytest.mark.parametrize("existed", [False, True])
def test_a_failure_leaves_nothing_half_written(existed: bool, builder: Builder, tmp_path: Path) -> None:
    layer = Layer()
    layer.directory(b"a", **mine())
    layer.file(b"a/good", b"", **mine())
    layer.file(b"b", b"x" * 5000, **mine())
    rootfs = builder.rootfs(builder.tar(layer.tar()))
    out = tmp_path / "out"
    if existed:
        out.mkdir()

    class Nothing(OneChunk):
        def get(self, wanted: Sequence[object]) -> list[bytes]:
            raise ChunkMissingError("there is none")

    with pytest.raises(ChunkMissingError):
        extract(rootfs, Nothing(b""), out)
    rootfs.close()
    assert (list(out.iterdir()) if existed else list(tmp_path.iterdir())) == []
