"""A tree as one more metadata layer over an image: a reader of all layers sees that tree, whatever changed."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.build.delta import delta
from snapshotter.build.entries import Content, Node, inodes, number
from snapshotter.build.shelf import Shelf
from snapshotter.errors import CorruptError
from snapshotter.format.digest import sha256
from snapshotter.format.model import FileChunk, Inode, Kind, RootfsContent
from snapshotter.format.rootfs import Rootfs
from snapshotter.format.writer import encode


def file(data: bytes, **more: int) -> Node:
    return Node(
        Kind.FILE, 0o644, content=Content(len(data), chunks=[FileChunk(sha256(data), 0, len(data))] if data else ()), **more
    )


def directory(**names: Node) -> Node:
    node = Node(Kind.DIR)
    node.names().update({name.encode(): child for name, child in names.items()})
    return node


def image(*layers: list[Inode]) -> Rootfs:
    return Rootfs.open(encode(RootfsContent(layers)))


def base(root: Node) -> list[Inode]:
    return inodes(number(root))


def shown(rootfs: Rootfs) -> dict[bytes, object]:
    """What a reader sees, hard links by the names that they join; no numbers."""
    names: dict[int, list[bytes]] = {}
    found: dict[bytes, Inode] = {}
    pending = [(b"/", 1)]
    while pending:
        path, ino = pending.pop()
        found[path] = inode = rootfs.inode(ino)
        names.setdefault(ino, []).append(path)
        pending += [(path + entry.name + b"/", entry.ino) for entry in inode.entries]
    assert sorted(names) == list(rootfs.numbers())  # nothing can be reached by number that has no name
    return {
        path: (
            inode.kind,
            inode.permissions,
            inode.uid,
            inode.mtime,
            inode.target,
            [(chunk.digest, chunk.length) for chunk in inode.chunks],
            sorted(names[inode.ino]),
        )
        for path, inode in found.items()
    }


def assert_steps(*trees: Node) -> list[list[Inode]]:
    """Each tree over the ones before; the layers, newest first."""
    layers = [base(trees[0])]
    for tree in trees[1:]:
        new = list(delta(tree, image(*layers)))
        layers = [new, *layers] if new else layers
        assert shown(image(*layers)) == shown(image(base(tree)))
    return layers


def test_the_same_tree_is_no_layer() -> None:
    def tree() -> Node:
        linked = file(b"l")
        return directory(a=file(b"x"), d=directory(b=linked), c=linked)

    assert len(assert_steps(tree(), tree())) == 1


def test_only_what_changed_is_in_the_layer() -> None:
    def tree(data: bytes) -> Node:
        return directory(big=directory(**{f"f{i}": file(b"%d" % i) for i in range(50)}), d=directory(changed=file(data)))

    layers = assert_steps(tree(b"one"), tree(b"two"))
    assert [found.kind for found in layers[0]] == [Kind.FILE]


def test_names_keep_their_numbers_and_new_ones_continue() -> None:
    layers = assert_steps(directory(a=file(b"1"), c=file(b"3")), directory(a=file(b"1"), b=file(b"2"), c=Node(Kind.FIFO)))
    root, changed, added = layers[0]
    assert [(entry.ino, entry.name) for entry in root.entries] == [(2, b"a"), (4, b"b"), (3, b"c")]
    assert (changed.ino, changed.kind) == (3, Kind.FIFO)
    assert (added.ino, added.kind) == (4, Kind.FILE)


def test_what_is_gone_has_a_whiteout_and_no_name() -> None:
    layers = assert_steps(directory(a=file(b"1"), d=directory(f=file(b"2"))), directory(a=file(b"1")))
    assert [(found.ino, found.kind) for found in layers[0]] == [(1, Kind.DIR), (3, Kind.WHT), (4, Kind.WHT)]
    assert [entry.name for entry in layers[0][0].entries] == [b"a"]


def test_a_name_that_comes_back_has_a_new_number() -> None:
    there, gone = directory(a=file(b"1")), directory()
    layers = assert_steps(there, gone, directory(a=file(b"again")))
    assert [entry.ino for entry in layers[0][0].entries] == [3]


def test_hard_links_that_part_are_two_inodes() -> None:
    """Upstream's builder gives both the same number, and one of the files is lost."""
    linked = file(b"linked")
    layers = assert_steps(directory(a=linked, b=linked), directory(a=file(b"linked"), b=file(b"no longer")))
    numbers = [found.ino for found in layers[0]]
    assert len(set(numbers)) == len(numbers)


def test_files_that_are_linked_to_each_other_now() -> None:
    linked = file(b"linked")
    assert_steps(directory(a=file(b"1"), b=file(b"2"), z=file(b"3")), directory(a=linked, b=linked, z=file(b"3")))


def test_a_new_name_before_the_old_ones_keeps_the_number() -> None:
    """Upstream's builder gives the file a new number, and the old inode stays."""
    before, after = file(b"x"), file(b"x")
    layers = assert_steps(directory(m=before, z=before), directory(a=after, m=after, z=after))
    assert [found.ino for found in layers[0]] == [1]  # the directory alone changed


def test_a_hard_link_that_is_gone_does_not_come_back_from_below() -> None:
    linked, alone = file(b"x"), file(b"x")
    assert_steps(directory(a=linked, b=linked), directory(b=alone))


def test_a_directory_with_two_parents_is_no_tree() -> None:
    twice = directory()
    with pytest.raises(CorruptError, match="more than one parent"):
        delta(directory(a=twice, b=twice), image(base(directory())))


_leaves = st.one_of(
    st.builds(file, st.sampled_from([b"", b"1", b"2"]), uid=st.integers(0, 1), mtime=st.integers(0, 1)),
    st.builds(lambda target: Node(Kind.LNK, 0o777, target=target), st.sampled_from([b"a", b"b"])),
)


@st.composite
def _trees(draw: st.DrawFn) -> Node:
    root = directory()
    places, linkable = [root], [draw(_leaves)]
    for _ in range(draw(st.integers(0, 8))):
        names = draw(st.sampled_from(places)).names()
        name = draw(st.sampled_from([b"a", b"b", b"c"]))
        if name not in names:
            kind = draw(st.sampled_from("dfl"))
            names[name] = directory() if kind == "d" else draw(st.sampled_from(linkable)) if kind == "l" else draw(_leaves)
            (places if kind == "d" else linkable).append(names[name])
    return root


@given(st.lists(_trees(), min_size=2, max_size=4))
def test_any_tree_over_any_other(trees: Iterable[Node]) -> None:
    assert_steps(*trees)


def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    """Of a change of one file: what the image has and the tree is neither kept nor listed."""

    def tree(directories: int, shelf: Shelf, data: bytes) -> Node:
        root = directory()
        for place in range(directories):
            names = directory()
            root.names()[b"%05d" % place] = names
            for name in range(100):
                names.names()[b"%03d" % name] = file(data if place == name == 0 else b"x")
                shelf.added(names)
        shelf.settle()
        return root

    def peak(directories: int) -> int:
        with closing(Shelf(tmp_path, 200)) as shelf:
            below = image(base(tree(directories, shelf, b"before")))
            root = tree(directories, shelf, b"after")
            gc.collect()
            tracemalloc.start()
            with closing(delta(root, below, tmp_path)) as found:
                assert [inode.kind for inode in found] == [Kind.FILE]
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return most

    # 10 bytes a file, and some more for each directory; inodes and nodes would be 1,500.
    assert peak(40) - peak(15) < 25 * 100 * 40
