"""The file system free of FUSE: over messages made by hand, chunks in a dict."""

from __future__ import annotations

import itertools
import stat
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.chunkstore.base import ChunkMissingError, ChunkRef
from snapshotter.errors import CorruptError, NotFoundError
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.model import DirEntry, FileChunk, Inode, Kind, RootfsContent, Xattr
from snapshotter.format.rootfs import Rootfs
from snapshotter.format.writer import encode
from snapshotter.mount.pieces import BATCH_CHUNKS, read_pieces
from snapshotter.mount.tree import Attributes, Tree, new_cache
from tests.support.chunks import StubStore

ALPHABET = bytes(range(256)) * 4


def tree_of(*inodes: Inode, as_layer: bool = False, overlay_prefix: bytes = b"trusted.overlay.") -> Tree:
    """A tree of these inodes, the root first, as a message holds them."""
    content = encode(RootfsContent([sorted(inodes, key=lambda inode: inode.ino)]))
    return Tree(Rootfs.open(content), as_layer=as_layer, overlay_prefix=overlay_prefix)


def directory(ino: int, *entries: tuple[int, bytes], opaque: bool = False) -> Inode:
    """A directory with (ino, name) entries."""
    ordered = sorted(entries, key=lambda pair: pair[1])
    return Inode(ino, Kind.DIR, entries=[DirEntry(child, name) for child, name in ordered], look_below=not opaque)


def file(ino: int, *pieces: bytes) -> Inode:
    """A file of whole chunks."""
    return Inode(ino, Kind.FILE, 0o644, chunks=[FileChunk(sha256(piece), 0, len(piece)) for piece in pieces])


def test_names() -> None:
    tree = tree_of(directory(1, (2, b"a"), (3, b"b")), file(2), directory(3, (2, b"again")))
    assert tree.lookup(1, b"a") == 2
    assert tree.lookup(3, b"again") == 2
    assert tree.lookup(1, b"c") is None
    assert tree.lookup(1, b"") is None
    assert [entry.name for entry in tree.entries(1)] == [b"a", b"b"]
    with pytest.raises(CorruptError):
        tree.lookup(2, b"a")
    with pytest.raises(NotFoundError):
        tree.entries(9)


def test_attributes_of_every_kind() -> None:
    tree = tree_of(
        directory(1, (2, b"f"), (3, b"l"), (4, b"d"), (5, b"c"), (6, b"p"), (7, b"s"), (8, b"b"), (2, b"g")),
        Inode(2, Kind.FILE, 0o4755, 1, 2, -3, 999_999_999, chunks=[FileChunk(sha256(b""), 0, 513)]),
        Inode(3, Kind.LNK, 0o777, target=b"target"),
        Inode(4, Kind.DIR, 0o1777),
        Inode(5, Kind.CHR, device=(4095, 0xFFFFF)),
        Inode(6, Kind.FIFO),
        Inode(7, Kind.SOCK),
        Inode(8, Kind.BLK, device=(7, 300)),
    )
    assert tree.attributes(2) == Attributes(2, stat.S_IFREG | 0o4755, 2, 1, 2, 513, 2, 0, -3, 999_999_999)
    assert tree.attributes(3)[:7] == (3, stat.S_IFLNK | 0o777, 1, 0, 0, 6, 0)
    assert tree.attributes(4)[:7] == (4, stat.S_IFDIR | 0o1777, 2, 0, 0, 4096, 8)
    assert tree.attributes(1).nlink == 3
    assert tree.attributes(5).rdev == 0xFFFF_FFFF
    assert [stat.S_IFMT(tree.attributes(ino).mode) for ino in (5, 6, 7, 8)] == [
        stat.S_IFCHR,
        stat.S_IFIFO,
        stat.S_IFSOCK,
        stat.S_IFBLK,
    ]


def test_statfs_counts_blocks_and_inodes() -> None:
    tree = tree_of(directory(1, (2, b"a"), (3, b"b")), file(2, b"x" * 4097), file(3, b"y"))
    assert tree.statfs() == (3, 3)


def test_readlink() -> None:
    tree = tree_of(directory(1, (2, b"l")), Inode(2, Kind.LNK, target=b"../x"))
    assert tree.readlink(2) == b"../x"
    with pytest.raises(CorruptError):
        tree.readlink(1)


def test_a_layer_gives_overlayfs_its_signs() -> None:
    inodes = [
        directory(1, (2, b"opaque"), (3, b"gone"), (4, b"plain")),
        directory(2, opaque=True),
        Inode(3, Kind.WHT),
        directory(4),
    ]
    layer, whole = tree_of(*inodes, as_layer=True), tree_of(*inodes)
    assert layer.xattrs(2) == {b"trusted.overlay.opaque": b"y"}
    assert layer.xattrs(4) == layer.xattrs(1) == whole.xattrs(2) == {}
    assert (layer.may_have_xattrs(2), layer.may_have_xattrs(4), whole.may_have_xattrs(2)) == (True, False, False)
    assert (layer.attributes(3).mode & 0o170000, layer.attributes(3).rdev) == (stat.S_IFCHR, 0)
    assert layer.lookup(1, b"gone") == 3
    assert whole.lookup(1, b"gone") is None
    assert [entry.name for entry in whole.entries(1)] == [b"opaque", b"plain"]
    with pytest.raises(NotFoundError):
        whole.attributes(3)


def test_the_root_is_never_opaque() -> None:
    tree = tree_of(directory(1, opaque=True), as_layer=True)
    assert tree.xattrs(1) == {}
    assert not tree.may_have_xattrs(1)


def test_an_image_gives_overlayfs_no_orders() -> None:
    planted = [Xattr(b"trusted.overlay.redirect", b"/etc"), Xattr(b"user.x", b"1")]
    root = Inode(1, Kind.DIR, xattrs=planted, look_below=True)
    assert tree_of(root, as_layer=True).xattrs(1) == {b"user.x": b"1"}
    assert tree_of(root).xattrs(1) == {b"trusted.overlay.redirect": b"/etc", b"user.x": b"1"}


def test_overlays_of_a_user_namespace_have_their_own_orders() -> None:
    """Those and no others: the other kind is an attribute like any, which such an overlay would show to a container."""
    planted = [Xattr(b"user.overlay.redirect", b"/etc"), Xattr(b"user.x", b"1")]
    inodes = [directory(1, (2, b"opaque")), Inode(2, Kind.DIR, xattrs=planted)]
    assert tree_of(*inodes, as_layer=True, overlay_prefix=b"user.overlay.").xattrs(2) == {
        b"user.overlay.opaque": b"y",
        b"user.x": b"1",
    }


@pytest.mark.parametrize("as_layer", [True, False])
def test_a_directory_with_two_names_fails_and_its_siblings_do_not(as_layer: bool) -> None:
    tree = tree_of(
        directory(1, (2, b"a"), (4, b"good")),
        directory(2, (3, b"b")),
        directory(3, (2, b"loop")),
        directory(4),
        as_layer=as_layer,
    )
    with pytest.raises(CorruptError, match="2 names"):
        tree.attributes(2)
    assert tree.attributes(4).nlink == 2


@pytest.mark.parametrize("target", [0, 1])
def test_no_name_leads_to_the_root_or_to_nothing(target: int) -> None:
    tree = tree_of(directory(1, (target, b"bad"), (2, b"good")), file(2))
    with pytest.raises(CorruptError):
        tree.lookup(1, b"bad")
    with pytest.raises(CorruptError):
        tree.entry_attributes(tree.entries(1)[0])
    assert tree.lookup(1, b"good") == 2
    assert tree.attributes(1).nlink >= 2


def test_broken_inodes_fail_alone() -> None:
    tree = tree_of(
        directory(1, (2, b"unknown"), (3, b"twice"), (4, b"good"), (9, b"missing")),
        Inode(2, Kind.UNKNOWN),
        Inode(3, Kind.FILE, xattrs=[Xattr(b"user.x", b"1"), Xattr(b"user.x", b"2")]),
        file(4, b"x"),
    )
    with pytest.raises(CorruptError, match="no type"):
        tree.attributes(2)
    with pytest.raises(CorruptError, match="two extended attributes"):
        tree.xattrs(3)
    with pytest.raises(NotFoundError):
        tree.attributes(9)
    assert tree.attributes(4).size == 1
    assert tree.statfs().inodes == 4


def test_paths_for_messages() -> None:
    tree = tree_of(
        directory(1, (2, b"a"), (5, b"l1")), directory(2, (3, b"b"), (5, b"l2")), directory(3, (4, b"c")), file(4), file(5)
    )
    assert tree.path(1) == b"/"
    assert tree.path(4) == b"/a/b/c"
    assert tree.path(5) == b"/l1"
    assert tree.path(77) == b"inode 77"
    loop = tree_of(directory(1), directory(2, (3, b"x")), directory(3, (2, b"y")))
    assert loop.path(3) == b"inode 3"


def test_two_trees_share_a_cache_and_nothing_else() -> None:
    cache = new_cache()
    message = [encode(RootfsContent([[directory(1, (2, name)), file(2)]])) for name in (b"a", b"b")]
    first, second = (Tree(Rootfs.open(data), cache=cache) for data in message)
    assert first.lookup(1, b"a") == 2
    assert second.lookup(1, b"a") is None
    assert first.lookup(1, b"a") == 2


def contents(tree: Tree, ino: int, offset: int, length: int, store: StubStore) -> bytes:
    """What a read gives."""
    return b"".join(read_pieces(tree.plan(ino, offset, length), store))


@given(
    cuts=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 20)), max_size=60),
    offset=st.integers(0, 3000),
    length=st.integers(0, 3000),
)
def test_every_read_gives_the_bytes_of_the_file(cuts: Sequence[tuple[int, int]], offset: int, length: int) -> None:
    raws = [ALPHABET[index : index + skipped + taken + 3] for index, (taken, skipped) in enumerate(cuts)]
    chunks = [FileChunk(sha256(raw), skipped, taken) for raw, (taken, skipped) in zip(raws, cuts, strict=True)]
    whole = b"".join(raw[skipped : skipped + taken] for raw, (taken, skipped) in zip(raws, cuts, strict=True))
    tree = tree_of(directory(1, (2, b"f")), Inode(2, Kind.FILE, chunks=chunks))
    assert contents(tree, 2, offset, length, StubStore(raws)) == whole[offset : offset + length]
    assert tree.attributes(2).size == len(whole)


def test_a_read_asks_once_for_a_chunk_and_for_few_at_once() -> None:
    raw = b"0123456789"
    pieces = [raw] * 5 + [bytes([number]) * 3 for number in range(100)]
    tree = tree_of(directory(1, (2, b"f")), file(2, *pieces))
    store = StubStore(pieces)
    assert contents(tree, 2, 0, 10_000, store) == b"".join(pieces)
    assert max(map(len, store.asked)) <= BATCH_CHUNKS
    asked = list(itertools.chain.from_iterable(store.asked))
    assert len(asked) == len(set(asked)) == 101


def test_whole_chunks_are_not_copied() -> None:
    raw = b"0123456789"
    tree = tree_of(directory(1, (2, b"f")), file(2, raw))
    store = StubStore([raw])
    (buffer,) = read_pieces(tree.plan(2, 0, 10), store)
    assert buffer is store.chunks[sha256(raw)]


def test_a_chunk_that_is_too_short_is_corrupt() -> None:
    tree = tree_of(directory(1, (2, b"f")), Inode(2, Kind.FILE, chunks=[FileChunk(sha256(b"abc"), 1, 3)]))
    with pytest.raises(CorruptError, match="has 3 bytes"):
        contents(tree, 2, 0, 3, StubStore([b"abc"]))
    assert contents(tree, 2, 0, 2, StubStore([b"abc"])) == b"bc"


def test_the_stores_error_comes_through() -> None:
    tree = tree_of(directory(1, (2, b"f")), file(2, b"abc"))
    with pytest.raises(ChunkMissingError):
        contents(tree, 2, 0, 3, StubStore())
    assert contents(tree, 2, 3, 3, StubStore()) == b""
    with pytest.raises(CorruptError):
        tree.plan(1, 0, 1)


def test_upstreams_compressed_chunks_are_asked_for_as_such() -> None:
    digest = Digest(bytes(32))
    tree = tree_of(directory(1, (2, b"f")), Inode(2, Kind.FILE, chunks=[FileChunk(digest, 0, 3, compressed=True)]))
    assert tree.plan(2, 0, 3)[0].chunk == ChunkRef(digest, True)


def test_the_next_file_is_the_next_number_of_one() -> None:
    tree = tree_of(directory(1, (2, b"d"), (3, b"f"), (9, b"g")), directory(2), file(3), file(9))
    assert tree.next_file(1, 2) == 3
    assert tree.next_file(1, 1) is None
    assert tree.next_file(3, 6) == 9
    assert tree.next_file(3, 5) is None
    assert tree.next_file(9, 100) is None


def test_a_path_is_resolved_through_symlinks_within_the_tree() -> None:
    tree = tree_of(
        directory(1, (2, b"usr"), (3, b"lib"), (8, b"loop"), (9, b"out")),
        directory(2, (4, b"lib")),
        Inode(3, Kind.LNK, target=b"usr/lib"),
        directory(4, (5, b"real"), (6, b"absolute"), (7, b"up")),
        file(5),
        Inode(6, Kind.LNK, target=b"/lib/real"),
        Inode(7, Kind.LNK, target=b"../../usr/lib/real"),
        Inode(8, Kind.LNK, target=b"loop"),
        Inode(9, Kind.LNK, target=b"../../../../etc/passwd"),
    )
    for path in (b"/usr/lib/real", b"lib/real", b"/lib//./absolute", b"lib/up", b"/../lib/real"):
        assert tree.resolve(path) == 5, path
    for path in (b"/loop", b"/out", b"/lib/none", b"/lib/real/below", b"/" + b"x" * 300):
        assert tree.resolve(path) is None, path
    assert tree.resolve(b"") == 1
