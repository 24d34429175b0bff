"""Inodes come back by number, as they were, wherever they are kept."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from snapshotter.build import inodelist
from snapshotter.build.inodelist import InodeList
from snapshotter.format.digest import sha256
from snapshotter.format.model import DirEntry, FileChunk, Inode, Kind, Xattr

SOME = [
    Inode(7, Kind.FILE, 0o644, 1, 2, -3, 4, chunks=[FileChunk(sha256(b"x"), 3, 5, compressed=True)]),
    Inode(1, Kind.DIR, entries=[DirEntry(2, b"\xff"), DirEntry(7, b"f")], look_below=True),
    Inode(2, Kind.LNK, 0o777, target=b"there", xattrs=[Xattr(b"user.a", b"\0")]),
    Inode(9, Kind.CHR, device=(1, 3)),
]


def plain(inode: Inode) -> tuple[object, ...]:
    return (inode.ino, inode.kind, inode.permissions, inode.uid, inode.gid, inode.mtime, inode.mtime_nsec, inode.device,
            list(inode.entries), inode.look_below, list(inode.chunks), list(inode.xattrs), inode.target)  # fmt: skip


@pytest.mark.parametrize("kept", [inodelist.KEPT_MAX, 0])
def test_they_come_back_by_number(kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inodelist, "KEPT_MAX", kept)
    with closing(InodeList(tmp_path)) as found:
        for inode in SOME:
            found.add(inode)
        found.add_whiteout(5)
        expected = sorted([*SOME, Inode(5, Kind.WHT, 0o644)], key=lambda inode: inode.ino)
        for _ in range(2):
            assert list(map(plain, found)) == list(map(plain, expected))
        assert len(found) == 5
    assert not list(tmp_path.iterdir())


def test_those_of_one_number_come_in_their_order(tmp_path: Path) -> None:
    with closing(InodeList(tmp_path)) as found:
        for order, uid in ((0, 1), (3, 2), (2, 3), (3, 4)):
            found.add(Inode(8, Kind.FIFO, uid=uid), order)
        found.add(Inode(6, Kind.FIFO, uid=5), 9)
        found.add_whiteout(8)
        assert [(inode.kind, inode.uid) for inode in found] == [
            (Kind.FIFO, 5),
            (Kind.FIFO, 1),
            (Kind.WHT, 0),
            (Kind.FIFO, 3),
            (Kind.FIFO, 2),
            (Kind.FIFO, 4),
        ]


def test_few_need_no_temporary_directory(tmp_path: Path) -> None:
    with closing(InodeList(tmp_path / "missing")) as found:
        found.add(SOME[0])
        assert len(list(found)) == 1
