"""What a mount must show, whoever serves it: every test runs on both engines, against the tree that the image was made from."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
import socket
import stat
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from snapshotter.format.digest import sha256
from snapshotter.format.model import DirEntry, FileChunk, Inode, Kind
from tests.mount.engines import Engine, Mounted
from tests.mount.richtree import BIG, MANY
from tests.mount.source import PIECE, Builder
from tests.support.trees import differences, look


def everything(root: Path) -> Iterator[Path]:
    """All names below `root`, and itself."""
    yield root
    for directory, subdirectories, files in os.walk(root):
        for name in subdirectories + files:
            yield Path(directory, name)


def test_the_tree_is_equal(mounted: Mounted, source: Path) -> None:
    assert differences(look(os.fsencode(source)), look(os.fsencode(mounted.path))) == []


def test_lstat_in_every_field(mounted: Mounted, source: Path) -> None:
    for path in everything(mounted.path):
        found, expected = path.lstat(), (source / path.relative_to(mounted.path)).lstat()
        for field in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_mtime_ns"):
            assert getattr(found, field) == getattr(expected, field), (path, field)
        assert found.st_blksize == 4096
        assert found.st_atime_ns == found.st_ctime_ns == found.st_mtime_ns
        if stat.S_ISDIR(found.st_mode):
            assert (found.st_size, found.st_blocks) == (4096, 8)
        else:
            assert found.st_size == expected.st_size, path
            assert found.st_rdev == expected.st_rdev, path
            assert found.st_blocks == (-(-found.st_size // 512) if stat.S_ISREG(found.st_mode) else 0)


def test_hard_links_share_a_number_and_others_do_not(mounted: Mounted, source: Path) -> None:
    numbers: dict[int, set[Path]] = {}
    expected: dict[int, set[Path]] = {}
    for path in everything(mounted.path):
        relative = path.relative_to(mounted.path)
        numbers.setdefault(path.lstat().st_ino, set()).add(relative)
        expected.setdefault((source / relative).lstat().st_ino, set()).add(relative)
    assert {frozenset(group) for group in numbers.values()} == {frozenset(group) for group in expected.values()}


def test_reading_at_odd_offsets(mounted: Mounted, source: Path) -> None:
    made = random.Random(1)
    content = (source / "big").read_bytes()
    fd = os.open(mounted.path / "big", os.O_RDONLY)
    try:
        for _ in range(300):
            offset, length = made.randrange(BIG + 5000), made.choice([1, 2, 511, 4096, 4097, 65536, 1_300_000])
            assert os.pread(fd, length, offset) == content[offset : offset + length], (offset, length)
        for border in range(PIECE, BIG, PIECE):
            assert os.pread(fd, 2, border - 1) == content[border - 1 : border + 1]
    finally:
        os.close(fd)


def test_reading_past_the_page_cache(mounted: Mounted, source: Path) -> None:
    content = (source / "big").read_bytes()
    fd = os.open(mounted.path / "big", os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 2 << 20) as buffer:
            assert os.preadv(fd, [buffer], 4096) == 2 << 20
            assert buffer[:] == content[4096 : 4096 + (2 << 20)]
    finally:
        os.close(fd)


def test_mmap_sendfile_splice_and_copy(mounted: Mounted, source: Path, tmp_path: Path) -> None:
    content = (source / "big").read_bytes()
    with open(mounted.path / "big", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        assert view[-1000:] == content[-1000:]
        assert sha256(view[:]) == sha256(content)
    target = tmp_path / "copy"
    with open(mounted.path / "big", "rb") as file, open(target, "wb") as out:
        while os.sendfile(out.fileno(), file.fileno(), None, 1 << 20):
            pass
    assert target.read_bytes() == content
    here, there = os.pipe()
    with open(mounted.path / "text", "rb") as file:
        assert os.splice(file.fileno(), there, 100) == 6
    assert os.read(here, 100) == b"hello\n"
    os.close(here)
    os.close(there)


def test_seeking_for_data_and_holes(mounted: Mounted) -> None:
    with open(mounted.path / "sparse", "rb") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 0
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 3_000_003


def test_a_large_directory_is_listed_whole_and_once(mounted: Mounted) -> None:
    expected = [f"entry-{number:05}" for number in range(MANY)]
    assert sorted(os.listdir(mounted.path / "many")) == expected
    with os.scandir(mounted.path / "many") as entries:
        seen = {entry.name: (entry.is_file(follow_symlinks=False), entry.inode()) for entry in entries}
    assert sorted(seen) == expected
    assert all(is_file for is_file, _ in seen.values())
    assert len({ino for _, ino in seen.values()}) == MANY


def test_directory_entries_have_types_and_dots(mounted: Mounted) -> None:
    listed = subprocess.run(
        ["ls", "-faiU", mounted.path / "special"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {".", ".."} <= set(listed[1::2])
    with os.scandir(mounted.path / "links") as entries:
        kinds = {entry.name: (entry.is_symlink(), entry.is_dir(follow_symlinks=False)) for entry in entries}
    assert kinds["soft"] == (True, False)
    assert kinds["sub"] == (False, True)


def test_names_that_are_not_there(mounted: Mounted) -> None:
    for _ in range(2):  # the second time by the kernel's memory
        with pytest.raises(FileNotFoundError):
            (mounted.path / "missing").lstat()
    with pytest.raises(NotADirectoryError):
        (mounted.path / "text" / "x").lstat()
    with pytest.raises(OSError, match="too long"):
        (mounted.path / ("n" * 256)).lstat()


def test_xattrs_that_are_not_there(mounted: Mounted) -> None:
    for name in ("text", "xattrs/file"):
        with pytest.raises(OSError) as caught:
            os.getxattr(mounted.path / name, "user.missing")
        assert caught.value.errno == errno.ENODATA
    assert os.listxattr(mounted.path / "text") == []


def readable(mounted: Mounted, name: str, uid: int) -> bool:
    """Whether user `uid` can read a file (by a relative path: the directories above the mount are root's alone)."""
    command = ["cat", name]
    run = subprocess.run(command, cwd=mounted.path, capture_output=True, user=uid, group=uid, extra_groups=[], check=False)
    return run.returncode == 0


def test_acls_are_obeyed(mounted: Mounted) -> None:
    assert [uid for uid in (1, 1234, 4321) if readable(mounted, "xattrs/acl", uid)] == [1, 1234]


def test_permissions_are_obeyed(mounted: Mounted) -> None:
    assert [uid for uid in (0, 1000 + 0o400, 65534) if readable(mounted, "modes/400", uid)] == [0, 1000 + 0o400]
    assert readable(mounted, "text", 65534)


def test_running_a_program(mounted: Mounted) -> None:
    assert subprocess.run([mounted.path / "xattrs" / "program"], check=False).returncode == 0


def test_locks_and_ioctl(mounted: Mounted) -> None:
    with open(mounted.path / "text", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with pytest.raises(OSError) as caught:
            fcntl.ioctl(file, 0x5401, bytes(100))  # TCGETS
        assert caught.value.errno == errno.ENOTTY


def test_statfs(mounted: Mounted, source: Path) -> None:
    found = os.statvfs(mounted.path)
    sizes = {status.st_ino: status.st_size for path in everything(source) if stat.S_ISREG((status := path.lstat()).st_mode)}
    assert found.f_blocks == sum(-(-size // 4096) for size in sizes.values())
    assert found.f_files == len({path.lstat().st_ino for path in everything(source)})
    assert (found.f_bfree, found.f_bavail, found.f_ffree) == (0, 0, 0)
    assert (found.f_bsize, found.f_namemax) == (4096, 255)
    assert found.f_flag & os.ST_RDONLY


def test_everything_that_writes_is_refused(mounted: Mounted) -> None:
    path = mounted.path
    attempts = [
        (path / "new").touch,
        lambda: open(path / "text", "r+b").close(),
        (path / "text").unlink,
        lambda: (path / "text").rename(path / "other"),
        (path / "new").mkdir,
        (path / "no entries").rmdir,
        lambda: os.link(path / "text", path / "other"),
        lambda: os.symlink("x", path / "other"),
        lambda: os.mkfifo(path / "other"),
        lambda: (path / "text").chmod(0),
        lambda: os.chown(path / "text", 0, 0),
        lambda: os.utime(path / "text"),
        lambda: os.truncate(path / "text", 0),
        lambda: os.setxattr(path / "text", "user.x", b""),
        lambda: os.removexattr(path / "xattrs" / "file", "user.text"),
    ]
    for number, attempt in enumerate(attempts):
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno == errno.EROFS, number


def test_a_socket_and_a_fifo_work(mounted: Mounted) -> None:
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(ConnectionRefusedError):
        sock.connect(str(mounted.path / "special" / "socket"))
    reader = os.open(mounted.path / "special" / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(mounted.path / "special" / "fifo", os.O_WRONLY)
    os.write(writer, b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    os.close(writer)


def test_many_readers_at_once(engine: Engine, image: Path, source: Path, tmp_path: Path) -> None:
    content = (source / "big").read_bytes()

    def check(seed: int) -> None:
        made = random.Random(seed)
        with open(mount.path / "big", "rb", buffering=0) as file:
            for _ in range(30):
                offset = made.randrange(BIG)
                file.seek(offset)
                assert file.read(10_000) == content[offset : offset + 10_000]
        assert len(os.listdir(mount.path / "many")) == MANY

    with engine.mounted(image, tmp_path / "m") as mount, ThreadPoolExecutor(8) as pool:
        list(pool.map(check, range(8)))


def test_a_missing_chunk_fails_what_lies_in_it_and_nothing_else(engine: Engine, source: Path, tmp_path: Path) -> None:
    builder = Builder()
    builder.add_tree(source)
    image = builder.write(tmp_path / "image")
    content = (source / "big").read_bytes()
    lost = sha256(content[PIECE * 50 : PIECE * 51])
    (image / "chunks" / lost.hex()).unlink()
    with engine.mounted(image, tmp_path / "m") as mount:
        fd = os.open(mount.path / "big", os.O_RDONLY)
        try:
            with pytest.raises(OSError) as caught:
                os.pread(fd, 10, PIECE * 50 + 5)
            assert caught.value.errno == errno.EIO
            path, error = mount.failure()
            assert path == "/big"
            assert lost.hex() in error
            assert os.pread(fd, 100, 0) == content[:100]
            assert os.pread(fd, 100, BIG - 100) == content[-100:]
        finally:
            os.close(fd)
        found = look(os.fsencode(mount.path))
    expected = look(os.fsencode(source))
    expected[b"big"] = replace(expected[b"big"], content=errno.EIO)
    assert differences(expected, found) == []


def hostile_image(directory: Path) -> Path:
    """An image whose metadata lies: every child of its root but ``good`` breaks a rule."""
    builder = Builder()
    raw = b"0123456789"
    builder.chunks[sha256(raw)] = raw
    children = [
        Inode(2, Kind.FILE, 0o644, chunks=[FileChunk(sha256(raw), 0, 10)]),
        Inode(3, Kind.FILE, 0o644, chunks=[FileChunk(sha256(raw), 5, 10)]),
        Inode(4, Kind.UNKNOWN),
        Inode(5, Kind.DIR, entries=[DirEntry(6, b"twice")]),
        Inode(6, Kind.DIR, entries=[DirEntry(5, b"loop")]),
        Inode(7, Kind.DIR, entries=[DirEntry(7, b"itself")]),
        Inode(8, Kind.DIR, entries=[DirEntry(2, b"x/y")]),
        Inode(9, Kind.CHR, device=(5000, 0)),
    ]
    names = [
        (2, b"good"), (3, b"short-chunk"), (4, b"unknown"), (5, b"cycle"), (7, b"self"), (8, b"bad-name"), (9, b"device"),
        (99, b"missing"), (1, b"root"), (0, b"zero"),
    ]  # fmt: skip
    root = Inode(1, Kind.DIR, entries=[DirEntry(ino, name) for ino, name in sorted(names, key=lambda pair: pair[1])])
    builder.inodes = {inode.ino: inode for inode in [root, *children]}
    return builder.write(directory)


def test_metadata_that_lies_fails_where_it_lies(engine: Engine, tmp_path: Path) -> None:
    with engine.mounted(hostile_image(tmp_path / "image"), tmp_path / "m") as mount:
        assert sorted(os.listdir(mount.path)) == sorted(
            ["good", "short-chunk", "unknown", "cycle", "self", "bad-name", "device", "missing", "root", "zero"]
        )
        assert (mount.path / "good").read_bytes() == b"0123456789"
        for name in ("unknown", "cycle", "self", "device", "missing", "root", "zero"):
            with pytest.raises(OSError) as caught:
                (mount.path / name).lstat()
            assert caught.value.errno == errno.EIO, name
        with pytest.raises(OSError) as caught:
            os.listdir(mount.path / "bad-name")
        assert caught.value.errno == errno.EIO
        with pytest.raises(OSError) as caught:
            (mount.path / "short-chunk").read_bytes()
        assert caught.value.errno == errno.EIO
        assert (mount.path / "good").read_bytes() == b"0123456789"
