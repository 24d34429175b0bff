"""Messages are read alike by our reader and by pycapnp, whoever laid them out; damaged ones are refused, and nothing worse.

The builders below put objects where no honest allocator would need to, as the encoding specification allows it.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

import capnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.errors import CorruptError
from snapshotter.format import codec
from snapshotter.format.codec import RootfsMessage
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.model import ChunkVerity, DirEntry, FileChunk, Inode, Kind, RootfsContent, Xattr
from snapshotter.format.reader import SEGMENTS_MAX, MessageReader, Shape
from snapshotter.format.writer import encode

SCHEMA = capnp.load(str(Path(codec.__file__).parents[1] / "schema" / "puzzlefs.capnp"))
PAIR = Shape("QQ", 2)
KINDS = [kind.name.lower() for kind in Kind]

CONTENT = RootfsContent(
    [[
        Inode(1, Kind.DIR, entries=[DirEntry(n, b"name %d" % n) for n in range(2, 9)], mtime=-5, mtime_nsec=7, look_below=True),
        Inode(2, Kind.FILE, 0o4755, 1, 2, chunks=[FileChunk(sha256(b"x"), 0, 10), FileChunk(sha256(b"y"), 3, 9, True)]),
        Inode(3, Kind.LNK, target=b"target"),
        Inode(4, Kind.CHR, device=(10, 229), xattrs=[Xattr(b"user.a", b"b"), Xattr(b"user.empty", b"")]),
        Inode(5, Kind.DIR, entries=[DirEntry(2, b"again")]),
        Inode(6, Kind.BLK, device=(8, 1)),
        Inode(7, Kind.WHT),
        Inode(8, Kind.FILE, xattrs=[Xattr(b"security.capability", bytes(20))]),
    ]],
    [ChunkVerity(sha256(b"x"), bytes(32)), ChunkVerity(sha256(b"y"), bytes(range(32)))],
)  # fmt: skip


def ours(message: RootfsMessage, row: int) -> dict[str, Any]:
    inode = message.inode_at(0, row)
    return {
        "head": (inode.ino, inode.kind, inode.permissions, inode.uid, inode.gid, inode.mtime, inode.mtime_nsec),
        "device": inode.device,
        "entries": [(entry.ino, entry.name) for entry in inode.entries],
        "look_below": inode.look_below,
        "chunks": [(chunk.digest, chunk.offset, chunk.length, chunk.compressed) for chunk in inode.chunks],
        "xattrs": [(xattr.key, xattr.value) for xattr in inode.xattrs],
        "target": inode.target,
    }


def theirs(root: Any, row: int) -> dict[str, Any]:
    inode = root.metadatas[0].inodes[row]
    mode = inode.mode
    which = mode.which()
    device = mode.chr if which == "chr" else mode.blk if which == "blk" else None
    more = inode.additional
    return {
        "head": (inode.ino, KINDS.index(which), inode.permissions, inode.uid, inode.gid, inode.mtime, inode.mtimeNsec),
        "device": (device.major, device.minor) if device is not None else (0, 0),
        "entries": [(entry.ino, entry.name) for entry in mode.dir.entries] if which == "dir" else [],
        "look_below": which == "dir" and mode.dir.lookBelow,
        "chunks": [(c.blob.digest, c.blob.offset, c.len, c.blob.compressed) for c in mode.file] if which == "file" else [],
        "xattrs": [(xattr.key, xattr.val) for xattr in more.xattrs],
        "target": more.symlinkTarget if more._has("symlinkTarget") else None,
    }


def agree(data: bytes) -> int:
    """Compare both readers over the first rows of `data`; how many rows both of them accepted."""
    try:
        message = RootfsMessage(data)
    except CorruptError:
        return 0
    agreed = 0
    try:
        rows = list(message.scan(0))
    except CorruptError:
        rows = []
    with SCHEMA.Rootfs.from_bytes(data, traversal_limit_in_words=1 << 40) as root:
        for row in range(min(message.inode_count(0), 12)):
            try:
                inode = ours(message, row)
                oracle = theirs(root, row)
            except (CorruptError, capnp.KjException):
                continue
            assert inode == oracle
            if rows:
                scanned = rows[row]
                assert (scanned.ino, scanned.kind) == inode["head"][:2]
                assert scanned.has_xattrs == bool(inode["xattrs"])
                assert list(scanned.links) == [ino for ino, _ in inode["entries"]]
                assert scanned.opaque == (scanned.kind is Kind.DIR and not inode["look_below"])
            shown = message.stat_at(0, row)
            size = (
                sum(length for _, _, length, _ in inode["chunks"]) if shown.kind is Kind.FILE else len(inode["target"] or b"")
            )
            assert (inode["head"][0], *shown[:6]) == inode["head"]
            assert (shown.size, shown.device) == (size, inode["device"])
            assert message.ino_at(0, row) == inode["head"][0]
            assert message.kind_at(0, row) is inode["head"][1]
            agreed += 1
        for row in range(min(message.verity_count, 4)):
            try:
                pair = message.verity_at(row)
                stored = root.fsVerityData[row]
            except (CorruptError, capnp.KjException):
                continue
            assert (pair.digest, pair.verity) == (stored.digest, stored.verity)
    return agreed


@pytest.mark.parametrize("times", [True, False])
def test_both_read_all_that_we_write(times: bool) -> None:
    assert agree(encode(CONTENT, times=times)) == len(CONTENT.layers[0])


def test_both_read_all_that_pycapnp_writes() -> None:
    root = SCHEMA.Rootfs.new_message()
    root.manifestVersion = 3
    (vector,) = root.init("metadatas", 1)
    inodes = vector.init("inodes", 3000)
    for number, inode in enumerate(inodes, 1):
        inode.ino = number
        inode.mtime = -number
        entries = inode.mode.init("dir").init("entries", 2)
        for entry in entries:
            entry.ino = number
            entry.name = b"%d" % number
    data = root.to_bytes()
    root.clear_write_flag()
    assert struct.unpack_from("<I", data)[0] >= 1  # several segments
    message = RootfsMessage(data)
    assert message.inode_count(0) == 3000
    assert [list(row.links) for row in message.scan(0)] == [[number, number] for number in range(1, 3001)]
    assert agree(data) == 0  # refused by the rule about names, of which there are two alike
    for entry in (inode.mode.dir.entries[1] for inode in inodes):
        entry.name = b"other"
    assert agree(root.to_bytes()) == 12


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_both_agree_on_what_they_accept_of_a_damaged_message(data: st.DataObject) -> None:
    whole = bytearray(encode(CONTENT, times=data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] = data.draw(st.one_of(st.integers(0, 255), st.just(whole[at] ^ 1), st.just(whole[at] ^ 4)))
    agree(bytes(whole))


def message_of(*segments: list[int]) -> bytes:
    header = struct.pack(f"<I{len(segments)}I", len(segments) - 1, *(len(segment) for segment in segments))
    header += bytes(-len(header) % 8)
    return header + b"".join(struct.pack(f"<{len(words)}Q", *words) for words in segments)


def near(kind: int, offset: int, upper: int) -> int:
    return (offset << 2 | kind) & 0xFFFFFFFF | upper << 32


def far(segment: int, word: int, *, double: bool = False) -> int:
    return segment << 32 | word << 3 | (4 if double else 0) | 2


SIZE_2_1 = 2 | 1 << 16
BYTES_5 = 2 | 5 << 3
HELLO = int.from_bytes(b"hello", "little")


@pytest.mark.parametrize(
    "segments",
    [
        pytest.param([[near(0, 0, SIZE_2_1), 7, 8, near(1, 0, BYTES_5), HELLO]], id="plain"),
        pytest.param([[near(0, 1, SIZE_2_1), HELLO, 7, 8, near(1, -4, BYTES_5)]], id="backwards"),
        pytest.param([[far(1, 1)], [HELLO, near(0, 0, SIZE_2_1), 7, 8, near(1, -5, BYTES_5)]], id="far"),
        pytest.param(
            [[far(1, 0, double=True)], [far(2, 1), near(0, 0, SIZE_2_1)], [HELLO, 7, 8, near(1, -4, BYTES_5)]], id="double far"
        ),
        pytest.param(
            [[near(0, 0, SIZE_2_1), 7, 8, far(1, 0, double=True)], [far(2, 0), near(1, 99, BYTES_5)], [HELLO]],
            id="double far to bytes",
        ),
    ],
)
def test_every_kind_of_pointer_is_followed(segments: list[list[int]]) -> None:
    reader = MessageReader(message_of(*segments))
    segment, at, (first, second, pointer, missing) = reader.root(PAIR)
    assert (first, second, missing) == (7, 8, 0)
    assert reader.data(segment, at, pointer, 100) == (b"hello", 5)
    assert reader.data(segment, at, pointer, 2) == (b"he", 5)


@pytest.mark.parametrize(
    ("segments", "complaint"),
    [
        ([[], [0, 0]], "first segment is empty"),
        ([[near(0, 0, SIZE_2_1), 7, 8]], "outside of its segment"),
        ([[near(0, -2, SIZE_2_1), 7, 8, 0]], "outside of its segment"),
        ([[near(0, 0, SIZE_2_1), 7, 8], [0]], "outside of its segment"),
        ([[near(1, 0, BYTES_5), HELLO]], "where one to a struct is due"),
        ([[3]], "where one to a struct is due"),
        ([[far(1, 0)]], "a segment that does not exist"),
        ([[far(1, 1)], [0]], "outside of its segment"),
        ([[far(1, 0)], [far(0, 0)]], "where one to a struct is due"),
        ([[far(1, 0, double=True)], [far(0, 0)]], "outside of its segment"),
        ([[far(1, 0, double=True)], [near(0, 0, 0), near(0, 0, 0)]], "does not begin with a far pointer"),
        ([[far(1, 0, double=True)], [far(1, 0, double=True), near(0, 0, 0)]], "does not begin with a far pointer"),
        ([[far(1, 0, double=True)], [far(0, 1), near(0, 0, 1)]], "outside of its segment"),
    ],
)
def test_a_pointer_that_leads_nowhere_is_refused(segments: list[list[int]], complaint: str) -> None:
    with pytest.raises(CorruptError, match=complaint):
        MessageReader(message_of(*segments)).root(PAIR)


@pytest.mark.parametrize("stored", [(0, 0), (1, 0), (3, 1), (2, 2), (5, 0), (4, 3)])
def test_a_struct_of_another_size_has_the_fields_that_both_know(stored: tuple[int, int]) -> None:
    data_words, pointers = stored
    words = [*range(11, 11 + data_words), *([0] * pointers)]
    rows = 3
    lists = [near(0, 0, 1 << 16), near(1, 0, 7 | rows * len(words) << 3), near(0, rows, data_words | pointers << 16)]
    reader = MessageReader(message_of(lists + words * rows))
    segment, at, (pointer,) = reader.root(Shape("", 1))
    found = reader.structs(segment, at, pointer)
    expected = (11 if data_words > 0 else 0, 12 if data_words > 1 else 0, 0, 0)
    assert list(reader.rows(found, PAIR)) == [expected] * rows
    assert reader.row(found, 2, PAIR) == expected
    assert reader.row(found, 1, Shape("Q", 0)) == expected[:1]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([near(1, 0, 2 | 8 << 3), 0], "where one to a list of structs is due"),
        ([near(1, 0, 7 | 2 << 3), near(0, 3, 1), 0, 0], "a list of structs that are not in it"),
        ([near(1, 0, 7 | 2 << 3), near(1, 2, 1), 0, 0], "a list of structs that are not in it"),
        ([near(1, 0, 7 | 3 << 3), near(0, 2, 1), 0, 0], "outside of its segment"),
    ],
)
def test_a_list_that_claims_more_than_it_has_is_refused(words: list[int], complaint: str) -> None:
    reader = MessageReader(message_of([near(0, 0, 1 << 16), *words]))
    segment, at, (pointer,) = reader.root(Shape("", 1))
    with pytest.raises(CorruptError, match=complaint):
        reader.structs(segment, at, pointer)


@pytest.mark.parametrize(
    ("pointer", "size", "limit", "complaint"),
    [
        (near(1, 0, 4 | 4 << 3), 8, 9, "one to numbers of 8 bytes is due"),
        (near(1, 0, 7 | 2 << 3), 4, 9, "one to numbers of 4 bytes is due"),
        (near(0, 0, 1), 4, 9, "one to numbers of 4 bytes is due"),
        (near(1, 0, 4 | 4 << 3), 4, 3, "4 numbers where at most 3 are due"),
        (near(1, 0, 4 | 5 << 3), 4, 9, "outside of its segment"),
        (near(1, 1, 4 | 4 << 3), 4, 9, "outside of its segment"),
        (near(1, -3, 4 | 4 << 3), 4, 9, "outside of its segment"),
    ],
)
def test_a_list_of_numbers_that_is_none_is_refused(pointer: int, size: int, limit: int, complaint: str) -> None:
    reader = MessageReader(message_of([near(0, 0, 1 << 16), pointer, 1, 2]))
    segment, at, (found,) = reader.root(Shape("", 1))
    with pytest.raises(CorruptError, match=complaint):
        reader.numbers_of(segment, at, found, size, limit)


def test_a_list_of_numbers_is_given_as_it_lies() -> None:
    reader = MessageReader(message_of([near(0, 0, 2 << 16), near(1, 1, 4 | 3 << 3), 0, 1 | 2 << 32, 3 | 4 << 32]))
    segment, at, (found, null) = reader.root(Shape("", 2))
    assert struct.unpack("<3I", reader.numbers_of(segment, at, found, 4, 3)) == (1, 2, 3)
    assert reader.numbers_of(segment, at + 1, null, 8, 0) == b""


def test_the_table_of_segments_is_bounded() -> None:
    assert MessageReader(message_of([0], *([[]] * (SEGMENTS_MAX - 1)))).root(PAIR)[2] == (0, 0, 0, 0)
    with pytest.raises(CorruptError, match="segments, a message has at most"):
        MessageReader(message_of([0], *([[]] * SEGMENTS_MAX)))
    with pytest.raises(CorruptError, match="its segments have"):
        MessageReader(message_of([0, 0])[:-8])


def test_xattrs_that_share_a_value_cannot_fill_the_memory() -> None:
    value = bytes(60_000)
    keys = [Xattr(b"k%d" % n, value if n == 0 else b"") for n in range(40)]
    data = bytearray(encode(RootfsContent([[Inode(1, Kind.DIR, xattrs=keys)]])))
    message = RootfsMessage(bytes(data))
    assert len(message.inode_at(0, 0).xattrs) == 40
    # The list's rows are pairs of pointers: let every row's value be a double far pointer to the first one's bytes.
    table = struct.unpack_from(f"<I{struct.unpack_from('<I', data)[0] + 1}I", data)
    segments, at = [], (len(table) * 4 + 7) // 8 * 8
    for size in table[1:]:
        segments.append(list(struct.unpack_from(f"<{size}Q", data, at)))
        at += size * 8
    owner = next(n for n, words in enumerate(segments) if near(0, 40, 2 << 16) in words)
    first = segments[owner].index(near(0, 40, 2 << 16)) + 1
    big = segments[owner][first + 1]
    assert big & 3 == 2, "the value is in another segment"
    for row in range(40):
        segments[owner][first + 2 * row + 1] = big
    with pytest.raises(CorruptError, match="xattrs share their values"):
        RootfsMessage(message_of(*segments)).inode_at(0, 0)


def test_a_map_can_be_closed_after_its_message(tmp_path: Path) -> None:
    (tmp_path / "message").write_bytes(encode(CONTENT))
    with open(tmp_path / "message", "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    message = RootfsMessage(mapped)
    rows = message.scan(0)
    inodes = [message.inode_at(0, row) for row in range(message.inode_count(0))]
    assert next(rows).ino == 1
    message.close()
    mapped.close()  # no view of it is left, though a scan was under way
    assert inodes[1].chunks[0].digest == Digest(sha256(b"x"))
