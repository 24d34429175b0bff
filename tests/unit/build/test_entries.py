"""Walk order and numbering are part of every digest: upstream's golden listing is the reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from snapshotter.build.chunk import ChunkList
from snapshotter.build.entries import Content, Node, from_rootfs, inodes, number
from snapshotter.errors import CorruptError
from snapshotter.format.model import FileChunk, Kind, RootfsContent
from snapshotter.format.rootfs import Rootfs
from snapshotter.format.writer import encode

GOLDEN = Path(__file__).parents[2] / "golden" / "upstream"


def directory(**children: Node) -> Node:
    node = Node(Kind.DIR)
    for name, child in children.items():
        node.names()[name.encode()] = child
    return node


def numbered(root: Node) -> dict[str, list[int]]:
    """Entries by directory number."""
    numbering = number(root)
    return {str(ino): [entry.ino for entry in numbering.entries(node)] for ino, node in numbering if node.kind is Kind.DIR}


def test_a_directory_numbers_all_its_entries_before_the_walk_goes_deeper() -> None:
    root = directory(
        a=directory(x=Node(Kind.FIFO), y=directory(z=Node(Kind.FIFO))), b=directory(w=Node(Kind.FIFO)), c=Node(Kind.FIFO)
    )
    assert numbered(root) == {"1": [2, 3, 4], "2": [5, 6], "6": [7], "3": [8]}


def test_a_second_name_keeps_the_number_and_consumes_one() -> None:
    shared = Node(Kind.FIFO)
    root = directory(a=shared, b=shared, c=Node(Kind.FIFO))
    assert numbered(root) == {"1": [2, 2, 4]}
    assert [ino for ino, _ in number(root)] == [1, 2, 4]
    assert len(number(root)) == 3


def test_names_are_in_the_order_of_their_bytes() -> None:
    root = Node(Kind.DIR)
    for name in (b"b", b"\xff", b"B", b"a.b", b"a", b"a-dir"):
        root.names()[name] = Node(Kind.FIFO)
    assert [entry.name for entry in number(root).entries(root)] == [b"B", b"a", b"a-dir", b"a.b", b"b", b"\xff"]


@pytest.mark.parametrize("case", ["basic", "large-directory", "empty", "one-empty-file", "mixed-zstd"])
def test_numbering_is_upstreams(case: str) -> None:
    """Upstream's images, taken apart and numbered anew, come out with the numbers that upstream gave."""
    layout = GOLDEN / case / "image"
    index = json.loads((layout / "index.json").read_bytes())
    manifest = json.loads((layout / "blobs/sha256" / index["manifests"][0]["digest"][7:]).read_bytes())
    message = (layout / "blobs/sha256" / manifest["layers"][0]["digest"][7:]).read_bytes()
    rootfs = Rootfs.open(message)
    tree = from_rootfs(rootfs)
    assert [(inode.ino, inode.kind, inode.entries) for inode in inodes(number(tree))] == [
        (inode.ino, inode.kind, inode.entries) for inode in rootfs.inodes()
    ]
    rootfs.close()


def test_contents_come_once_each_in_the_order_of_the_numbers() -> None:
    first, second = Content(1), Content(2)
    shared = Node(Kind.FILE, content=first)
    root = directory(a=directory(x=shared), b=Node(Kind.FILE, content=second), c=shared)
    assert list(number(root).contents()) == [second, first]


def test_contents_by_directory_are_those_that_have_their_first_name_there() -> None:
    contents = [Content(size) for size in range(1, 5)]
    nodes = [Node(Kind.FILE, content=content) for content in contents]
    root = directory(
        a=directory(b=nodes[0], c=directory(d=nodes[1])), b=directory(), c=directory(e=nodes[0], f=nodes[2]), d=nodes[3]
    )
    numbering = number(root)
    by_directory = list(numbering.contents_by_directory())
    assert by_directory == [[contents[3]], [contents[0]], [contents[1]], [contents[2]]]
    assert [content for found in by_directory for content in found] == list(numbering.contents())


def test_depth_is_no_limit() -> None:
    root = node = Node(Kind.DIR)
    for _ in range(5000):
        child = Node(Kind.DIR)
        node.names()[b"d"] = child
        node = child
    assert [ino for ino, _ in number(root)] == list(range(1, 5002))


def test_a_directory_with_two_parents_is_refused() -> None:
    shared = directory(x=Node(Kind.FIFO))
    with pytest.raises(CorruptError, match="more than one parent"):
        number(directory(a=shared, b=shared))


def test_a_cycle_is_refused() -> None:
    root = directory(a=directory())
    root.names()[b"a"].names()[b"up"] = root
    with pytest.raises(CorruptError, match="more than one parent"):
        number(root)


def test_inodes_are_not_made_before_the_files_are_cut() -> None:
    with pytest.raises(ValueError, match="before its file was cut"):
        inodes(number(directory(a=Node(Kind.FILE, content=Content(5)))))


def test_a_tree_survives_its_message() -> None:
    file = Node(Kind.FILE, 0o4711, 5, 6, -3, 999, content=Content(7, chunks=[FileChunk(b"d" * 32, 3, 7)]))
    file.xattrs = {b"user.b": b"", b"user.a": b"\0"}
    root = directory(
        dev=Node(Kind.CHR, device=(5, 1)), file=file, gone=Node(Kind.WHT), link=Node(Kind.LNK, target=b"to"), twin=file
    )
    root.names()[b"opaque"] = directory()
    root.names()[b"opaque"].look_below = False
    listed = inodes(number(root))
    rootfs = Rootfs.open(encode(RootfsContent((listed,), ())))
    assert inodes(number(from_rootfs(rootfs))) == listed
    rootfs.close()


def test_numbers_of_names_are_those_of_their_inodes() -> None:
    shared = Node(Kind.FIFO)
    root = directory(a=shared, b=directory(x=shared, y=Node(Kind.FIFO)))
    numbering = number(root)
    found = [[(entry.ino, entry.name) for entry in numbering.entries(node)] for _, node in numbering]
    assert [ino for ino, _ in numbering] == [1, 2, 3, 5]
    assert found == [[(2, b"a"), (3, b"b")], [], [(2, b"x"), (5, b"y")], []]


def test_a_files_chunks_are_kept_packed_and_come_back_as_they_were() -> None:
    content = Content(7, directory=b"/srv/tree", name=b"f")
    assert (content.path, content.chunks) == (b"/srv/tree/f", None)
    chunks = [FileChunk(b"d" * 32, 3, 5), FileChunk(b"e" * 32, 0, 2, compressed=True)]
    content.chunks = ChunkList(chunks)
    assert list(content.chunks or ()) == chunks
    assert list(Content(0).chunks or ()) == []
