"""Every rule for hostile metadata, chunks and packs: breaking it is one clear error, for what breaks it and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from snapshotter.errors import CorruptError, PuzzlefsError
from snapshotter.format.compression import Codec, compress, decode_chunk, decode_seekable, decompress
from snapshotter.format.digest import sha256
from snapshotter.format.model import CHUNK_MAX, DirEntry, FileChunk, Inode, Kind, RootfsContent
from snapshotter.format.pack import HEADER, PackEntry, PackIndex, trailer
from snapshotter.format.rootfs import Rootfs
from snapshotter.format.writer import encode
from snapshotter.mount.pieces import read_pieces
from snapshotter.mount.tree import Piece, Tree
from tests.support.chunks import StubStore, refs

CHUNK = sha256(b"chunk")
GOOD = Inode(90, Kind.FIFO)


def entries(*names: bytes, ino: int = 90) -> list[Inode]:
    return [Inode(2, Kind.DIR, entries=[DirEntry(ino, name) for name in names])]


def file(*chunks: FileChunk) -> list[Inode]:
    return [Inode(2, Kind.FILE, chunks=chunks)]


RULES: list[tuple[str, Sequence[Inode], str]] = [
    ("an empty name", entries(b""), "no name"),
    ("the name .", entries(b"."), "no name"),
    ("the name ..", entries(b".."), "no name"),
    ("a name with a slash", entries(b"a/b"), "no name"),
    ("a name with a NUL", entries(b"a\0b"), "no name"),
    ("a name of 256 bytes", entries(b"n" * 256), "no name"),
    ("two equal names", entries(b"a", b"a"), "two entries of the same name"),
    ("a directory in itself", entries(b"a", ino=2), "with 2 names"),
    ("a chunk of no bytes", file(FileChunk(CHUNK, 0, 0)), "0\\+0 of a chunk"),
    ("a chunk over 16 MiB", file(FileChunk(CHUNK, 0, CHUNK_MAX + 1)), "has at most"),
    ("an offset beyond a chunk", file(FileChunk(CHUNK, CHUNK_MAX, 1)), "has at most"),
    ("an offset of 2^63", file(FileChunk(CHUNK, 1 << 63, 1)), "has at most"),
    ("a target with a NUL", [Inode(2, Kind.LNK, target=b"a\0b")], "symlink target"),
    ("a file with a target", [Inode(2, Kind.FILE, target=b"a")], "a symlink has a target"),
    ("a symlink without one", [Inode(2, Kind.LNK)], "a symlink has a target"),
    ("permissions beyond 07777", [Inode(2, Kind.FIFO, 0o17777)], "exceed 0o7777"),
    ("a device that cannot be", [Inode(2, Kind.CHR, device=(1 << 20, 0))], "does not exist on Linux"),
    ("no type", [Inode(2, Kind.UNKNOWN)], "no type"),
]


@pytest.mark.parametrize(("inodes", "complaint"), [rule[1:] for rule in RULES], ids=[rule[0] for rule in RULES])
def test_an_inode_that_breaks_a_rule_is_refused_and_no_other(inodes: Sequence[Inode], complaint: str) -> None:
    root = Inode(1, Kind.DIR, entries=[DirEntry(2, b"bad"), DirEntry(90, b"good")])
    tree = Tree(Rootfs.open(encode(RootfsContent([[root, *inodes, GOOD]]))))
    with pytest.raises(CorruptError, match=complaint):
        (tree.entries(2) if inodes[0].kind is Kind.DIR else tree.plan(2, 0, 1))
    assert tree.attributes(90).ino == 90
    assert tree.lookup(1, b"good") == 90
    tree.close()


def test_a_directory_with_two_parents_is_refused() -> None:
    root = Inode(1, Kind.DIR, entries=[DirEntry(2, b"a"), DirEntry(3, b"b")])
    inodes = [root, Inode(2, Kind.DIR, entries=[DirEntry(4, b"x")]), Inode(3, Kind.DIR, entries=[DirEntry(4, b"y")])]
    tree = Tree(Rootfs.open(encode(RootfsContent([[*inodes, Inode(4, Kind.DIR)]]))))
    with pytest.raises(CorruptError, match="with 2 names"):
        tree.entries(4)
    tree.close()


@pytest.mark.parametrize("ino", [0, 1, 77])
def test_a_name_leads_to_no_root_and_to_nothing_that_is_missing(ino: int) -> None:
    tree = Tree(Rootfs.open(encode(RootfsContent([[Inode(1, Kind.DIR, entries=[DirEntry(ino, b"x")])]]))))
    with pytest.raises(PuzzlefsError):
        tree.attributes(tree.lookup(1, b"x") or 0)
    tree.close()


@pytest.mark.parametrize("inodes", [[], [Inode(2, Kind.DIR)], [Inode(1, Kind.FILE)]], ids=["none", "no root", "a file"])
def test_metadata_without_a_root_directory_is_refused(inodes: Sequence[Inode]) -> None:
    with pytest.raises(CorruptError, match="the root"):
        Rootfs.open(encode(RootfsContent([inodes])))


def test_a_chunk_shorter_than_the_metadata_says_is_an_error() -> None:
    with pytest.raises(CorruptError, match="asks for"):
        read_pieces([Piece(refs([b"chunk"])[0], 3, 3, 6)], StubStore([b"chunk"]))


ZEROS = compress(bytes(64 << 20))


@pytest.mark.parametrize(
    "decode",
    [
        lambda: decode_chunk(Codec.ZSTD, ZEROS, 4096),
        lambda: decompress(ZEROS, 1 << 20),
        lambda: decode_seekable(ZEROS, 1 << 20),
    ],
    ids=["chunk", "blob", "seekable"],
)
def test_a_bomb_is_not_let_off(decode: Callable[[], bytes]) -> None:
    assert len(ZEROS) < 10_000
    with pytest.raises(CorruptError):
        decode()


@pytest.mark.parametrize(
    "entry",
    [
        PackEntry(CHUNK, CHUNK_MAX + 1, len(HEADER), 10, Codec.ZSTD),
        PackEntry(CHUNK, 10, len(HEADER), 11, Codec.RAW),
        PackEntry(CHUNK, 10, len(HEADER), 0, Codec.RAW),
        PackEntry(CHUNK, 10, 0, 10, Codec.RAW),
        PackEntry(CHUNK, 100, 1000 - 5, 10, Codec.ZSTD),
        PackEntry(CHUNK, 100, 1 << 62, 10, Codec.ZSTD),
    ],
    ids=["too long", "longer stored", "stored in none", "in the header", "beyond the chunks", "far beyond"],
)
def test_an_index_that_lies_is_refused(entry: PackEntry) -> None:
    end, length = trailer([entry], 1000)
    with pytest.raises(CorruptError, match="pack index"):
        PackIndex.parse(end[:length], 1000)
