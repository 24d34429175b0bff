"""Which trees are opened once for several mounts, and when they are let go of."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapshotter.errors import CorruptError, NotFoundError
from snapshotter.format.model import DirEntry, Inode, Kind, RootfsContent
from snapshotter.format.writer import encode
from snapshotter.mount import trees as module
from snapshotter.mount.trees import Trees


def write(path: Path, name: bytes) -> Path:
    """Metadata with an empty file of that name."""
    content = RootfsContent([[Inode(1, Kind.DIR, entries=[DirEntry(2, name)]), Inode(2, Kind.FILE, 0o644)]])
    path.unlink(missing_ok=True)
    path.write_bytes(encode(content))
    return path


def test_one_file_is_one_tree_until_its_last_user_is_gone(tmp_path: Path) -> None:
    trees = Trees()
    path = write(tmp_path / "metadata", b"a")
    first = trees.open(path, "l", as_layer=True)
    assert trees.open(path, "l", as_layer=True) is first
    trees.close(first)
    assert first.lookup(1, b"a") == 2, "its other user is still there"
    trees.close(first)
    again = trees.open(path, "l", as_layer=True)
    assert again is not first
    assert again.lookup(1, b"a") == 2
    trees.close(again)


def test_it_goes_by_the_file_and_not_by_its_name(tmp_path: Path) -> None:
    """What was damaged is published again under the same name."""
    trees = Trees()
    path = tmp_path / "metadata"
    old = trees.open(write(path, b"a"), "l", as_layer=True)
    new = trees.open(write(path, b"b"), "l", as_layer=True)
    assert (old.lookup(1, b"a"), old.lookup(1, b"b")) == (2, None)
    assert (new.lookup(1, b"a"), new.lookup(1, b"b")) == (None, 2)
    trees.close(old)
    assert new.lookup(1, b"b") == 2
    trees.close(new)


def test_what_overlayfs_sees_is_another_tree_than_what_a_person_sees(tmp_path: Path) -> None:
    trees = Trees()
    path = write(tmp_path / "metadata", b"a")
    layer, image = (trees.open(path, "l", as_layer=as_layer) for as_layer in (True, False))
    assert layer is not image
    trees.close(layer)
    trees.close(image)


def test_what_cannot_be_opened_is_not_kept(tmp_path: Path) -> None:
    trees = Trees()
    path = tmp_path / "metadata"
    with pytest.raises(NotFoundError, match="metadata of l: "):
        trees.open(path, "l", as_layer=True)
    path.write_bytes(b"garbage" * 8)
    with pytest.raises(CorruptError):
        trees.open(path, "l", as_layer=True)
    path.unlink()
    path.mkdir()
    with pytest.raises(CorruptError, match="metadata of l cannot be read: "):
        trees.open(path, "l", as_layer=True)
    tree = trees.open(write(tmp_path / "other", b"a"), "l", as_layer=True)
    trees.close(tree)


def test_a_long_message_stays_in_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILED_MIN", 100)
    trees = Trees()
    path = write(tmp_path / "metadata", b"a")
    tree = trees.open(path, "l", as_layer=True)
    assert tree.lookup(1, b"a") == 2
    assert tree.statfs().inodes == 2
    trees.close(tree)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(CorruptError):
        trees.open(path, "l", as_layer=True)
