"""A folded message reads as it did before, from blocks of any size; what stays in its file is what it was, or is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapshotter.errors import CorruptError, NotFoundError
from snapshotter.format import folded
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.folded import Unfolded
from snapshotter.format.model import ChunkVerity, DirEntry, FileChunk, Inode, Kind, RootfsContent, Xattr
from snapshotter.format.rootfs import Rootfs
from snapshotter.format.writer import encode

FILES = 400


def content() -> RootfsContent:
    """A layer whose lists and values are longer than a block, and shorter, and cross from one to the next."""
    names = [DirEntry(ino, b"%03d-%s" % (ino, b"n" * (ino % 200))) for ino in range(2, 2 + FILES)]
    inodes = [Inode(1, Kind.DIR, entries=names, xattrs=[Xattr(b"user.long", b"v" * 30_000)])]
    for entry in names:
        chunks = [FileChunk(sha256(b"%d" % (entry.ino * 1000 + row)), row, row + 1) for row in range(entry.ino % 40)]
        inodes.append(Inode(entry.ino, Kind.FILE, 0o644, chunks=chunks))
    digests = sorted(sha256(b"%d" % number) for number in range(2_000))
    return RootfsContent([inodes], [ChunkVerity(digest, sha256(digest)) for digest in digests])


CONTENT = content()
MESSAGE = encode(CONTENT)


@pytest.fixture(params=[2048, 4096, 1 << 16])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The message in a file; blocks of several sizes."""
    monkeypatch.setattr(folded, "BLOCK", request.param)
    written = tmp_path / "metadata"
    written.write_bytes(MESSAGE)
    return written


def fold(path: Path, unfolded: Unfolded, *, surveyed: bool = True) -> Rootfs:
    """The message of that file, as a mount has it."""
    rootfs = Rootfs.open(path.read_bytes())
    if surveyed:
        rootfs.survey()
    rootfs.fold(unfolded, os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    return rootfs


def test_all_of_it_reads_the_same_from_its_file(path: Path) -> None:
    rootfs = Rootfs.filed(Unfolded(3), os.open(path, os.O_RDONLY | os.O_CLOEXEC), len(MESSAGE))
    plain = Rootfs.open(MESSAGE)
    assert rootfs.survey() == plain.survey()
    assert list(rootfs.inodes()) == list(plain.inodes())
    assert list(rootfs.verities()) == list(CONTENT.verity)
    path.write_bytes(bytes(len(MESSAGE)))
    with pytest.raises(CorruptError, match="not what it was"):
        list(rootfs.inodes())
    rootfs.close()


@pytest.mark.parametrize("size", [0, 8, len(MESSAGE) - 8, len(MESSAGE) + 8])
def test_a_file_of_another_size_is_refused(path: Path, size: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CorruptError):
        Rootfs.filed(Unfolded(), os.open(path, os.O_RDONLY | os.O_CLOEXEC), size)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("surveyed", [True, False])
def test_everything_reads_as_before(path: Path, surveyed: bool) -> None:
    rootfs = fold(path, Unfolded(3), surveyed=surveyed)
    plain = Rootfs.open(MESSAGE)
    assert list(rootfs.inodes()) == list(plain.inodes())
    assert rootfs.survey() == plain.survey()
    assert [rootfs.stat(ino) for ino in range(1, FILES)] == [plain.stat(ino) for ino in range(1, FILES)]
    assert list(rootfs.verities()) == list(CONTENT.verity)
    assert rootfs.verity(CONTENT.verity[77].digest) == CONTENT.verity[77].verity
    assert rootfs.verity(Digest(bytes(32))) is None
    with pytest.raises(NotFoundError):
        rootfs.inode(FILES + 2)
    rootfs.close()


def test_what_is_unfolded_is_bounded_over_all_messages_and_ends_with_each(path: Path) -> None:
    unfolded = Unfolded(4)
    first, second = fold(path, unfolded), fold(path, unfolded)
    for ino in range(1, FILES):
        assert first.inode(ino) == second.inode(ino)
        assert len(unfolded) <= 4
    first.close()
    second.inode(2)
    assert 0 < len(unfolded) <= 4
    second.close()
    assert len(unfolded) == 0


def test_of_a_file_that_was_changed_the_rest_is_refused_and_what_is_in_memory_is_not(path: Path) -> None:
    rootfs = fold(path, Unfolded())
    path.write_bytes(bytes(len(MESSAGE)))
    assert list(rootfs.inodes()) == list(CONTENT.layers[0])
    with pytest.raises(CorruptError, match="not what it was"):
        list(rootfs.verities())
    rootfs.close()


def test_of_a_file_that_cannot_be_read_the_rest_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rootfs = fold(path, Unfolded())

    def refuse(*arguments: object) -> bytes:
        raise OSError(5, "the disk is gone")

    monkeypatch.setattr(os, "pread", refuse)
    with pytest.raises(CorruptError, match="the disk is gone"):
        rootfs.verity(CONTENT.verity[-1].digest)
    assert rootfs.inode(2) == CONTENT.layers[0][1]
    rootfs.close()


def test_the_file_is_let_go_of_with_the_message(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    rootfs = fold(path, Unfolded())
    assert len(os.listdir("/proc/self/fd")) == before + 1
    rootfs.close()
    assert len(os.listdir("/proc/self/fd")) == before


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_of_a_damaged_message_the_same_is_read_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    small = encode(RootfsContent([CONTENT.layers[0][:1]], CONTENT.verity[:20]))
    damaged = bytearray(small)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    written = tmp_path / "damaged"
    written.write_bytes(damaged)
    try:
        plain = Rootfs.open(bytes(damaged))
        rootfs = fold(written, Unfolded(2))
    except CorruptError:
        return

    def read(source: Rootfs) -> object:
        try:
            return [source.inode(1), source.stat(1), list(source.verities())]
        except (CorruptError, NotFoundError) as error:
            return str(error)

    assert read(rootfs) == read(plain)
    rootfs.close()
