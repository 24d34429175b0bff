"""Metadata messages: what is written is read, by us and by pycapnp; what breaks a rule is refused with one clear error."""

from __future__ import annotations

import struct
from pathlib import Path

import capnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.errors import CorruptError, NotFoundError
from snapshotter.format import codec
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.message import MessageBuilder
from snapshotter.format.model import ChunkVerity, DirEntry, FileChunk, Inode, Kind, RootfsContent, Xattr
from snapshotter.format.rootfs import Rootfs, Survey
from snapshotter.format.writer import encode

SCHEMA = capnp.load(str(Path(codec.__file__).parents[1] / "schema" / "puzzlefs.capnp"))

names = st.binary(min_size=1, max_size=255).filter(lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b".."))
digests = st.binary(min_size=32, max_size=32).map(Digest)
xattrs = st.lists(
    st.builds(Xattr, st.binary(min_size=1, max_size=40).filter(lambda k: b"\0" not in k), st.binary(max_size=100)), max_size=3
)
file_chunks = st.lists(st.builds(FileChunk, digests, st.integers(0, 1000), st.integers(1, 1 << 20), st.booleans()), max_size=4)


@st.composite
def inodes(draw: st.DrawFn, ino: int) -> Inode:
    """An inode of any type but a directory."""
    kind = draw(st.sampled_from([k for k in Kind if k is not Kind.DIR]))
    return Inode(
        ino=ino,
        kind=kind,
        permissions=draw(st.integers(0, 0o7777)),
        uid=draw(st.integers(0, 2**32 - 1)),
        gid=draw(st.integers(0, 2**32 - 1)),
        mtime=draw(st.integers(-(2**63), 2**63 - 1)),
        mtime_nsec=draw(st.integers(0, 999_999_999)),
        device=draw(st.tuples(st.integers(0, 4095), st.integers(0, 2**20 - 1))) if kind in (Kind.CHR, Kind.BLK) else (0, 0),
        chunks=draw(file_chunks) if kind is Kind.FILE else (),
        xattrs=draw(xattrs),
        target=draw(st.binary(min_size=1, max_size=300).filter(lambda t: b"\0" not in t)) if kind is Kind.LNK else None,
    )


@st.composite
def contents(draw: st.DrawFn) -> RootfsContent:
    """A root directory with any other inodes in it."""
    found = draw(st.lists(names, unique=True, max_size=30))
    entries = [DirEntry(ino, name) for ino, name in enumerate(sorted(found), 2)]
    root = Inode(1, Kind.DIR, entries=entries, look_below=draw(st.booleans()), xattrs=draw(xattrs))
    verity = sorted(
        draw(st.lists(st.builds(ChunkVerity, digests, st.binary(min_size=32, max_size=32)), max_size=5)), key=lambda v: v.digest
    )
    return RootfsContent([[root, *(draw(inodes(entry.ino)) for entry in entries)]], verity)


def plain(inode: Inode) -> Inode:
    """`inode` with lists as lists, so that values compare."""
    return Inode(
        **{
            name: list(value) if name in ("entries", "chunks", "xattrs") else value
            for name, value in ((field, getattr(inode, field)) for field in Inode.__dataclass_fields__)
        }
    )


@settings(max_examples=60, deadline=None)
@given(contents())
def test_what_is_written_is_read(content: RootfsContent) -> None:
    rootfs = Rootfs.open(encode(content))
    assert [plain(inode) for inode in rootfs.inodes()] == [plain(inode) for inode in content.layers[0]]
    assert list(rootfs.verities()) == list(content.verity)


@settings(max_examples=30, deadline=None)
@given(contents())
def test_pycapnp_accepts_the_layout_and_finds_the_same_values(content: RootfsContent) -> None:
    with SCHEMA.Rootfs.from_bytes(encode(content)) as root:
        stored = root.metadatas[0].inodes
        assert [inode.ino for inode in stored] == [inode.ino for inode in content.layers[0]]
        assert [(inode.mtime, inode.mtimeNsec) for inode in stored] == [(i.mtime, i.mtime_nsec) for i in content.layers[0]]
        assert [entry.name for entry in stored[0].mode.dir.entries] == [entry.name for entry in content.layers[0][0].entries]


def test_a_reader_without_our_fields_reads_the_rest() -> None:
    content = RootfsContent([[Inode(1, Kind.DIR, mtime=7, mtime_nsec=8)]])
    without = Rootfs.open(encode(content, times=False)).inode(1)
    assert (without.mtime, without.mtime_nsec) == (0, 0)
    assert Rootfs.open(encode(content)).inode(1).mtime == 7


def test_a_message_of_many_segments_is_read() -> None:
    entries = [DirEntry(ino, b"%06d" % ino) for ino in range(2, 20_002)]
    files = [Inode(e.ino, Kind.FILE, chunks=[FileChunk(sha256(e.name), 0, e.ino)]) for e in entries]
    data = encode(RootfsContent([[Inode(1, Kind.DIR, entries=entries), *files]]))
    (segments,) = struct.unpack_from("<I", data)
    assert segments >= 3
    rootfs = Rootfs.open(data)
    assert rootfs.lookup(1, b"020001") == 20_001
    assert rootfs.inode(12_345).size == 12_345


def opened(*layer: Inode) -> Rootfs:
    return Rootfs.open(encode(RootfsContent([list(layer)])))


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (Inode(2, Kind.DIR, entries=[DirEntry(3, b"")]), "no name for a directory entry"),
        (Inode(2, Kind.DIR, entries=[DirEntry(3, b".")]), "no name for a directory entry"),
        (Inode(2, Kind.DIR, entries=[DirEntry(3, b"..")]), "no name for a directory entry"),
        (Inode(2, Kind.DIR, entries=[DirEntry(3, b"a/b")]), "no name for a directory entry"),
        (Inode(2, Kind.DIR, entries=[DirEntry(3, b"a\0b")]), "no name for a directory entry"),
        (Inode(2, Kind.DIR, entries=[DirEntry(3, b"x" * 256)]), "no name for a directory entry"),
        (Inode(2, Kind.DIR, entries=[DirEntry(3, b"a"), DirEntry(4, b"a")]), "two entries of the same name"),
        (Inode(2, Kind.FILE, chunks=[FileChunk(Digest(b"short"), 0, 1)]), "5 bytes instead of 32"),
        (Inode(2, Kind.FILE, chunks=[FileChunk(sha256(b""), 0, 0)]), "bytes 0+0 of a chunk"),
        (Inode(2, Kind.FILE, chunks=[FileChunk(sha256(b""), 1, 16 << 20)]), "of a chunk, which has at most"),
        (Inode(2, Kind.LNK), "a symlink has a target"),
        (Inode(2, Kind.LNK, target=b""), "symlink target of 0 bytes"),
        (Inode(2, Kind.LNK, target=b"a\0b"), "with a NUL in it"),
        (Inode(2, Kind.LNK, target=b"x" * 4096), "symlink target of 4096 bytes"),
        (Inode(2, Kind.FILE, target=b"x"), "nothing else has one"),
        (Inode(2, Kind.FILE, xattrs=[Xattr(b"", b"")]), "xattr with a key of 0"),
        (Inode(2, Kind.FILE, xattrs=[Xattr(b"k", bytes(65537))]), "a value of 65537 bytes"),
        (Inode(2, Kind.CHR, device=(4096, 0)), "device 4096:0"),
        (Inode(2, Kind.FIFO, permissions=0o10000), "permissions 0o10000"),
        (Inode(2, Kind.FIFO, mtime_nsec=1_000_000_000), "more than a second"),
    ],
)
def test_an_inode_that_breaks_a_rule_is_refused_and_the_others_are_read(bad: Inode, complaint: str) -> None:
    rootfs = opened(Inode(1, Kind.DIR, entries=[DirEntry(2, b"bad"), DirEntry(3, b"good")]), bad, Inode(3, Kind.FIFO))
    with pytest.raises(CorruptError, match="inode 2") as error:
        rootfs.inode(2)
    assert complaint in str(error.value)
    assert rootfs.inode(3).kind is Kind.FIFO


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 8, b"\0" * 16, b"\xff" * 64, b"hello world, this is no capnp!!!", struct.pack("<II", 1 << 30, 0) * 4]
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptError):
        Rootfs.open(data)


def test_another_manifest_version_is_refused() -> None:
    data = bytearray(encode(RootfsContent([[Inode(1, Kind.DIR)]])))
    at = data.index(struct.pack("<Q", 3), 8)
    data[at] = 4
    with pytest.raises(CorruptError, match="manifest version 4"):
        Rootfs.open(bytes(data))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_message_gives_an_error_or_values_and_nothing_else(data: st.DataObject) -> None:
    whole = bytearray(encode(RootfsContent([[
        Inode(1, Kind.DIR, entries=[DirEntry(2, b"f"), DirEntry(3, b"l"), DirEntry(4, b"d")]),
        Inode(2, Kind.FILE, chunks=[FileChunk(sha256(b"x"), 0, 10)], xattrs=[Xattr(b"user.a", b"b")]),
        Inode(3, Kind.LNK, target=b"t"),
        Inode(4, Kind.DIR, entries=[DirEntry(2, b"again")]),
    ]], [ChunkVerity(sha256(b"x"), bytes(32))])))  # fmt: skip
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        rootfs = Rootfs.open(bytes(whole))
    except CorruptError:
        return
    for number in range(6):
        for read in (rootfs.inode, rootfs.link_count, lambda ino: rootfs.lookup(ino, b"f")):
            try:
                read(number)
            except (CorruptError, NotFoundError):
                continue


def test_directories_that_share_a_list_cannot_make_counting_quadratic() -> None:
    entries = [DirEntry(ino, b"%04d" % ino) for ino in range(2, 1002)]
    data = bytearray(encode(RootfsContent([[Inode(1, Kind.DIR, entries=entries), *(Inode(e.ino, Kind.DIR) for e in entries)]])))
    shared = Rootfs.open(bytes(data))
    assert shared.link_count(1) == 1002
    # Every directory says that it is the one with the thousand names.
    many = [
        Inode(1, Kind.DIR, entries=entries),
        *(Inode(e.ino, Kind.DIR, entries=entries) for e in entries[:300]),
        Inode(1001, Kind.FIFO),
    ]
    honest = Rootfs.open(encode(RootfsContent([many])))
    assert honest.link_count(1001) == 301


@pytest.mark.parametrize("surveyed", [False, True])
@pytest.mark.parametrize("gaps", [1, 3, 50])
def test_inodes_are_found_in_spite_of_gaps(gaps: int, surveyed: bool) -> None:
    numbers = [1, *range(1 + gaps, 2000, gaps)]
    rootfs = opened(*(Inode(n, Kind.DIR if n == 1 else Kind.FIFO, uid=n) for n in numbers))
    if surveyed:
        assert rootfs.survey().inodes == len(numbers)
    present = set(numbers)
    for number in range(1, 2100):
        if number in present:
            assert rootfs.inode(number).uid == rootfs.stat(number).uid == number
        else:
            with pytest.raises(NotFoundError):
                rootfs.inode(number)


def test_link_counts_are_those_of_the_names() -> None:
    rootfs = opened(
        Inode(1, Kind.DIR, entries=[DirEntry(2, b"a"), DirEntry(3, b"d"), DirEntry(5, b"e")]),
        Inode(2, Kind.FILE),
        Inode(3, Kind.DIR, entries=[DirEntry(2, b"b"), DirEntry(2, b"c"), DirEntry(6, b"f")]),
        Inode(5, Kind.DIR),
        Inode(6, Kind.FILE),
    )
    assert [rootfs.link_count(ino) for ino in (1, 2, 3, 5, 6)] == [4, 3, 2, 2, 1]


def test_a_directory_that_looks_below_shows_the_layers_under_it_and_an_opaque_one_does_not() -> None:
    below = [
        Inode(1, Kind.DIR, entries=[DirEntry(2, b"clear"), DirEntry(3, b"opaque")]),
        Inode(2, Kind.DIR, entries=[DirEntry(4, b"old"), DirEntry(5, b"gone")]),
        Inode(3, Kind.DIR, entries=[DirEntry(4, b"old")]),
        Inode(4, Kind.FIFO),
        Inode(5, Kind.FIFO),
    ]
    above = [
        Inode(2, Kind.DIR, entries=[DirEntry(6, b"new"), DirEntry(5, b"gone")], look_below=True),
        Inode(3, Kind.DIR, entries=[DirEntry(6, b"new")]),
        Inode(5, Kind.WHT),
        Inode(6, Kind.FIFO),
    ]
    rootfs = Rootfs.open(encode(RootfsContent([above, below])))
    assert [entry.name for entry in rootfs.inode(2).entries] == [b"new", b"old"]
    assert [entry.name for entry in rootfs.inode(3).entries] == [b"new"]
    assert list(rootfs.numbers()) == [1, 2, 3, 4, 6]
    with pytest.raises(NotFoundError):
        rootfs.inode(5)


def test_a_single_layer_shows_its_whiteouts() -> None:
    rootfs = opened(Inode(1, Kind.DIR, entries=[DirEntry(2, b"gone")]), Inode(2, Kind.WHT))
    assert rootfs.inode(2).kind is Kind.WHT
    assert rootfs.lookup(1, b"gone") == 2


def test_one_survey_answers_what_only_all_inodes_can_tell() -> None:
    chunk = FileChunk(sha256(b"x"), 0, 4097)
    root = Inode(1, Kind.DIR, entries=[DirEntry(2, b"a"), DirEntry(2, b"b"), DirEntry(3, b"c")])
    file = Inode(2, Kind.FILE, chunks=[chunk, chunk])
    assert opened(root, file, Inode(3, Kind.FIFO)).survey() == Survey(3, 3, frozenset(), frozenset(), {2: 2}, {})
    assert opened(root, file, Inode(3, Kind.DIR)).survey().opaque == {3}
    below = opened(root, file, Inode(3, Kind.DIR, look_below=True)).survey()
    assert (below.opaque, below.subdirectories) == (frozenset(), {1: 1})
    assert opened(root, file, Inode(3, Kind.FIFO, xattrs=[Xattr(b"user.a", b"")])).survey().attributed == {3}


def test_a_survey_changes_nothing_that_is_seen_of_an_inode() -> None:
    chunk = FileChunk(sha256(b"x"), 0, 4097)
    names = [DirEntry(2, b"b"), DirEntry(3, b"a"), DirEntry(4, b"c")]
    inodes = [
        Inode(1, Kind.DIR, entries=names),
        Inode(2, Kind.FILE, chunks=[chunk, chunk]),
        Inode(3, Kind.FILE),
        Inode(4, Kind.FIFO),
    ]
    rootfs = opened(*inodes)
    before = [rootfs.stat(ino) for ino in range(1, 5)]
    assert [seen.size for seen in before] == [0, 8194, 0, 0]
    rootfs.survey()
    assert [rootfs.stat(ino) for ino in range(1, 5)] == before
    assert [entry.name for entry in rootfs.inode(1).entries] == [b"a", b"b", b"c"]
    with pytest.raises(NotFoundError):
        rootfs.stat(5)


def test_a_survey_of_several_layers_counts_what_can_be_seen() -> None:
    chunk = FileChunk(sha256(b"x"), 0, 10)
    below = [
        Inode(1, Kind.DIR, entries=[DirEntry(2, b"gone"), DirEntry(3, b"kept"), DirEntry(3, b"linked")]),
        Inode(2, Kind.FILE, chunks=[chunk]),
        Inode(3, Kind.FILE, chunks=[chunk]),
    ]
    above = [Inode(1, Kind.DIR, entries=[DirEntry(2, b"gone")], look_below=True), Inode(2, Kind.WHT)]
    assert Rootfs.open(encode(RootfsContent([above, below]))).survey() == Survey(2, 1, frozenset(), frozenset(), {3: 2}, {})


@settings(max_examples=60, deadline=None)
@given(st.lists(contents(), min_size=1, max_size=3), st.integers(0, 200), st.booleans())
def test_objects_that_are_written_at_once_lie_where_each_alone_would(
    several: list[RootfsContent], more: int, times: bool
) -> None:
    """`graft` is a short cut: refusing it everywhere must give the same bytes."""
    wide = Inode(5000, Kind.DIR, entries=[DirEntry(number, b"n" * (1 + number % 90)) for number in range(more)])
    cut = Inode(5001, Kind.FILE, chunks=[FileChunk(sha256(b"%d" % number), number, 1) for number in range(more)])
    content = RootfsContent([[*each.layers[0], wide, cut] for each in several], several[0].verity)
    at_once = encode(content, times=times)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MessageBuilder, "graft", lambda *arguments: 0)
        assert encode(content, times=times) == at_once
