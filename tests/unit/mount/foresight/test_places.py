"""Where files are, found from their numbers."""

from __future__ import annotations

from snapshotter.format.model import DirEntry, Inode, Kind, RootfsContent
from snapshotter.format.rootfs import Rootfs
from snapshotter.format.writer import encode
from snapshotter.mount.foresight.places import Place, Places
from snapshotter.mount.tree import Tree


def directory(ino: int, *entries: tuple[int, bytes]) -> Inode:
    return Inode(ino, Kind.DIR, 0o755, entries=[DirEntry(number, name) for number, name in entries])


def places_of(*inodes: Inode, layers: int = 1) -> Places:
    return Places(Tree(Rootfs.open(encode(RootfsContent([list(inodes)] * layers)))))


TREE = (
    directory(1, (2, b"a"), (3, b"empty"), (4, b"f"), (5, b"z")),
    directory(2, (6, b"b"), (7, b"c"), (8, b"e")),
    directory(3),
    Inode(4, Kind.FILE),
    directory(5, (10, b"last")),
    Inode(6, Kind.FILE),
    directory(7, (9, b"d")),
    Inode(8, Kind.FILE),
    Inode(9, Kind.FILE),
    Inode(10, Kind.FILE),
)
"""Numbered as a builder does it: what is in a directory one after another, then what is below."""


def test_every_file_and_directory_is_found() -> None:
    places = places_of(*TREE)
    expected = {entry.ino: Place(inode.ino, entry.name) for inode in TREE for entry in inode.entries}
    assert {ino: places.of(ino) for ino in expected} == expected


def test_what_is_in_no_directory_has_no_place() -> None:
    places = places_of(*TREE)
    assert places.of(1) is None
    assert places.of(0) is None
    assert places.of(99) is None


def test_the_files_beside_one_are_those_of_its_directory() -> None:
    places = places_of(*TREE)
    assert [entry.ino for entry in places.beside(8)] == [6, 8]
    assert [entry.ino for entry in places.beside(9)] == [9]
    assert places.beside(1) == places.beside(99) == []


def test_a_tree_that_is_numbered_otherwise_has_no_wrong_places() -> None:
    places = places_of(
        directory(1, (9, b"a"), (2, b"b")),
        directory(2, (8, b"c"), (3, b"d")),
        Inode(3, Kind.FILE),
        Inode(8, Kind.FILE),
        Inode(9, Kind.FILE),
    )
    assert places.of(9) in (Place(1, b"a"), None)
    assert places.of(8) in (Place(2, b"c"), None)
    assert places.of(3) in (Place(2, b"d"), None)


def test_where_layers_share_directories_nothing_is_known() -> None:
    assert places_of(*TREE, layers=2).of(8) is None


def test_a_directory_that_breaks_a_rule_hides_no_other() -> None:
    broken = Inode(7, Kind.DIR, 0o755, entries=[DirEntry(9, b"no/name")])
    assert places_of(*(broken if inode.ino == 7 else inode for inode in TREE)).of(10) == Place(5, b"last")
