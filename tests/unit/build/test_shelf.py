"""What is put away of a tree comes back as it was, so that nobody can tell how much of it was in memory."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapshotter.build.chunk import ChunkList
from snapshotter.build.entries import Content, Node, each_inode, inodes, number, stamp
from snapshotter.build.mtimes import clamp_to
from snapshotter.build.shelf import RETURNS_MAX, Shelf
from snapshotter.errors import FailedPreconditionError
from snapshotter.format.digest import Digest
from snapshotter.format.model import FileChunk, Kind
from tests.support.builds import Builder
from tests.support.strategies import Item, tar_of, trees

CHUNK = FileChunk(Digest(b"d" * 32), 3, 5)

laws = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@laws
@given(st.lists(trees(), min_size=1, max_size=3))
def test_layers_are_the_same_however_much_of_them_is_in_memory(layers: Sequence[Sequence[Item]]) -> None:
    tars = [tar_of(list(items)) for items in layers]
    with Builder() as ample, Builder(leaves=1) as scarce:
        for one, other in zip(ample.tars(*tars), scarce.tars(*tars), strict=True):
            assert scarce.layer(other).message.to_bytes() == ample.layer(one).message.to_bytes()
            assert list(scarce.layer(other).chunks) == list(ample.layer(one).chunks)


def test_a_directory_is_the_same(tmp_path: Path) -> None:
    for place in range(20):
        directory = tmp_path / "a" / f"d{place}"
        directory.mkdir(parents=True)
        for file in range(place):
            (directory / f"f{file}").write_bytes(b"%d." % file * 10 * place)
        (directory / "link").symlink_to("f0")
        (directory / "twin").hardlink_to(tmp_path / "a" / "d1" / "f0") if place > 1 else None
    with Builder() as ample, Builder(leaves=5) as scarce:
        one, other = ample.directory(tmp_path), scarce.directory(tmp_path)
        assert scarce.layer(other).message.to_bytes() == ample.layer(one).message.to_bytes()


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    with closing(Shelf(tmp_path, 4)) as made:
        yield made


def filled(shelf: Shelf, root: Node, name: bytes, files: int) -> Node:
    """A new directory `name` of `root`, with so many files."""
    directory = root.names()[name] = Node(Kind.DIR)
    for file in range(files):
        content = Content(5, directory=b"/d", name=b"f", stamp=stamp(7, 8, 9))
        node = directory.names()[b"%d" % file] = Node(Kind.FILE, 0o640, 1, 2, -3, 4, content=content)
        node.xattrs = {b"user.b": b"2", b"user.a": b"1"}
        shelf.added(directory)
    return directory


def test_a_leaf_comes_back_as_it_was(shelf: Shelf) -> None:
    root = Node(Kind.DIR)
    first = filled(shelf, root, b"a", 3)
    link = first.names()[b"link"] = Node(Kind.LNK, 0o777, target=b"to")
    device = first.names()[b"device"] = Node(Kind.BLK, device=(8, 1))
    file = first.names()[b"0"]
    filled(shelf, root, b"b", 9)
    back = first.names()
    assert list(back) == [b"0", b"1", b"2", b"link", b"device"]
    assert back[b"0"] is not file, "it was away"
    for one, other in ((file, back[b"0"]), (link, back[b"link"]), (device, back[b"device"])):
        fields = [
            (node.kind, node.permissions, node.uid, node.gid, node.mtime, node.mtime_nsec, node.target, node.device)
            for node in (one, other)
        ]
        assert fields[0] == fields[1]
        assert list(one.xattrs.items()) == list(other.xattrs.items())
    content = back[b"0"].content
    assert content is not None
    assert (content.size, content.path, content.stamp, content.chunks) == (5, b"/d/f", stamp(7, 8, 9), None)


def test_a_small_tree_needs_no_temporary_directory(tmp_path: Path) -> None:
    with closing(Shelf(tmp_path / "missing", 4)) as shelf:
        root = Node(Kind.DIR)
        filled(shelf, root, b"a", 4)
        shelf.settle()
        with pytest.raises(FailedPreconditionError, match="missing: No such file"):
            filled(shelf, root, b"b", 4)


def test_a_file_that_is_cut_while_it_is_away_has_its_chunks(shelf: Shelf) -> None:
    root = Node(Kind.DIR)
    first = filled(shelf, root, b"a", 2)
    contents = [node.content for _, node in first.listed()]
    assert contents[0] is not None
    filled(shelf, root, b"b", 9)
    contents[0].chunks = ChunkList([CHUNK])
    found = [node.content for _, node in first.listed()]
    assert [content is not None and content.is_cut for content in found] == [True, False]
    assert [content is not None and list(content.chunks or ()) for content in found] == [[CHUNK], []]


def test_what_may_have_two_names_is_one_object_for_ever(shelf: Shelf) -> None:
    root = Node(Kind.DIR)
    first = filled(shelf, root, b"a", 2)
    twin = first.names()[b"1"]
    twin.is_shared = True
    second = filled(shelf, root, b"b", 9)
    second.names()[b"twin"] = twin
    filled(shelf, root, b"c", 9)
    assert first.names()[b"1"] is second.names()[b"twin"] is twin
    assert len(number(root)) == 1 + 3 + 2 + 9 + 9


def test_numbers_do_not_depend_on_what_is_away(shelf: Shelf, tmp_path: Path) -> None:
    root, same = Node(Kind.DIR), Node(Kind.DIR)
    ample = Shelf(tmp_path)
    for name in (b"c", b"a", b"b"):
        for place, tree in ((shelf, root), (ample, same)):
            directory = filled(place, tree, name, 7)
            filled(place, directory, b"below", 3)
    for tree in (root, same):
        for content in number(tree).contents():
            content.chunks = [CHUNK]
    assert inodes(number(root)) == inodes(number(same))
    ample.close()


def test_times_can_be_set_of_what_is_away(shelf: Shelf) -> None:
    root = Node(Kind.DIR)
    for name in (b"a", b"b", b"c"):
        filled(shelf, root, name, 7)
    clamp_to(0, 0)(root, shelf.added)
    shelf.settle()
    assert {(node.mtime, node.mtime_nsec) for _, node in number(root)} == {(0, 0)}


def test_a_directory_does_not_come_and_go_for_ever(shelf: Shelf) -> None:
    root = Node(Kind.DIR)
    first, second = filled(shelf, root, b"a", 9), filled(shelf, root, b"b", 9)
    kept = []
    for number_ in range(20):
        for directory in (first, second):
            kept.append(directory.names()[b"0"])
            directory.names()[b"new%d" % number_] = Node(Kind.FIFO)
            shelf.added(directory)
    assert len(set(kept)) <= 2 * (RETURNS_MAX + 1)


def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    """What a file adds to a tree that is read, numbered and listed: 20 bytes, and not 550."""

    def peak(directories: int) -> int:
        shelf = Shelf(tmp_path, 1000)
        gc.collect()
        tracemalloc.start()
        root = Node(Kind.DIR)
        for place in range(directories):
            filled(shelf, root, b"%d" % place, 400)
        shelf.settle()
        numbering = number(root)
        for content in numbering.contents():
            content.chunks = ChunkList([CHUNK])
        assert sum(1 for _ in each_inode(numbering)) == 1 + 401 * directories
        _, found = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        shelf.close()
        return found

    few, many = peak(25), peak(60)
    assert many - few < 60 * 35 * 400
