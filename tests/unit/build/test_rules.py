"""Checking a metadata message takes memory for a few more of its bytes, and ends, whatever is in it."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import pytest

from snapshotter.build import rules, segments
from snapshotter.build.chunktable import ChunkTable
from snapshotter.build.segments import SegmentFiles
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.message import MessageBuilder, Room
from snapshotter.format.model import ROOT_INO, ChunkVerity, DirEntry, FileChunk, Inode, Kind, RootfsContent, Xattr
from snapshotter.format.verity import verity_digest
from snapshotter.format.writer import encode

PER_DIRECTORY = 50


def many(directories: int) -> bytes:
    """A canonical message with so many directories of files, each file in a chunk of its own."""
    inodes = []
    verity = []
    number = ROOT_INO + directories + 1
    files = []
    for place in range(directories):
        entries = []
        for name in range(PER_DIRECTORY):
            digest = sha256(b"%d" % number)
            entries.append(DirEntry(number, b"some-name-%03d" % name))
            files.append(Inode(number, Kind.FILE, chunks=[FileChunk(digest, 0, 9)]))
            verity.append(ChunkVerity(digest, digest))
            number += 1
        inodes.append(Inode(ROOT_INO + 1 + place, Kind.DIR, entries=entries, look_below=True))
    names = [DirEntry(inode.ino, b"%05d" % inode.ino) for inode in inodes]
    root = Inode(ROOT_INO, Kind.DIR, entries=names, look_below=True)
    return encode(RootfsContent([[root, *inodes, *files]], sorted(verity, key=lambda pair: pair.digest)))


def peak(message: bytes, room: Room | None = None) -> int:
    """Most memory in bytes that is allocated for the check of `message`."""
    tracemalloc.start()
    try:
        found = rules.check(message, room)
        assert (found.errors.count, found.notes.count) == (0, 0)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_grows_as_the_message_does() -> None:
    small, large = many(20), many(200)
    # The canonical form, and the tables of chunks and inodes; lists of all inodes would take seven times as much.
    assert peak(large) - peak(small) < 2 * (len(large) - len(small))


def test_the_canonical_form_can_be_made_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = many(20), many(200)
    monkeypatch.setattr(segments, "KEPT_MAX", 0)
    growth = peak(large, SegmentFiles(tmp_path)) - peak(small, SegmentFiles(tmp_path))
    # What is left are the tables, and a megabyte of the message while it is compared.
    assert growth < (len(large) - len(small)) * 3 / 4


def test_of_many_findings_some_are_kept_and_all_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "FINDINGS_MAX", 5)
    root = Inode(ROOT_INO, Kind.DIR, entries=[DirEntry(number, b"%d" % number) for number in range(2, 22)])
    files = [Inode(2, Kind.FILE, chunks=[FileChunk(sha256(b"%d" % number), 0, 1) for number in range(9)])]
    found = rules.check(encode(RootfsContent([[root, *files]])))
    assert (found.errors.count, len(found.errors.lines)) == (19 + 9, 5)
    assert len(found.unrecorded) == 5


def test_what_is_not_laid_out_canonically_is_noted() -> None:
    content = RootfsContent([[Inode(ROOT_INO, Kind.DIR, look_below=True, xattrs=[Xattr(b"user.a", b"1")])]])
    message = encode(content)
    assert rules.check(message).notes.lines == []
    assert rules.check(encode(content, times=False)).notes.lines == []
    assert rules.check(message + bytes(8)).notes.lines == ["the message is not laid out in canonical form"]
    xattrs = [Xattr(b"user.b", b"1"), Xattr(b"user.a", b"1")]
    unsorted = encode(RootfsContent([[Inode(ROOT_INO, Kind.DIR, look_below=True, xattrs=xattrs)]]))
    assert "not in the order of their keys" in rules.check(unsorted).notes.lines[0]


def sharing(directories: int, names: int) -> bytes:
    """A message whose directories all point to one list of `names` entries, made by hand: no writer of ours makes such."""
    message = MessageBuilder(1, 2)
    message.root.u64(0, 3)
    (vector,) = message.root.structs(0, 1, 0, 1)
    inodes = list(vector.structs(0, directories, 4, 2))
    first = None
    for number, inode in enumerate(inodes, ROOT_INO):
        inode.u64(0, number)
        inode.u16(8, Kind.DIR)
        directory = inode.struct(0, 1, 1)
        if first is None:
            first = directory
            for entry, slot in enumerate(directory.structs(0, names, 1, 1)):
                slot.u64(0, ROOT_INO)
                slot.data(0, b"%08d" % entry)
        else:
            # A far pointer is the same wherever it stands; to a plain one lead others, for which it is the landing pad.
            (far,) = struct.unpack_from("<Q", first.segment.data, (first.word + 1) * 8)
            if far & 3 != 2:
                far = (first.word + 1) << 3 | 2 | first.segment.number << 32
            struct.pack_into("<Q", directory.segment.data, (directory.word + 1) * 8, far)
    return message.to_bytes()


def test_directories_that_share_a_list_do_not_make_the_check_endless() -> None:
    found = rules.check(sharing(2000, 2000))
    assert found.errors.lines[-1] == "its inodes list more than the message could hold: they share lists"


def test_a_table_of_chunks() -> None:
    table = ChunkTable()
    names = sorted(sha256(b"%d" % number) for number in range(20))
    for name in names:
        table.add(name, verity_digest(name))
    assert len(table) == 20
    assert list(table) == [(name, verity_digest(name)) for name in names]
    assert table.take(names[3], 7, compressed=False)
    assert table.take(names[3], 5, compressed=False)
    assert table.take(names[19], 1, compressed=True)
    assert not table.take(Digest(bytes(32)), 1, compressed=False)
    assert list(table.needs()) == [(names[3], False, 7), (names[19], True, 1)]
    assert (table.end(names[3], compressed=False), table.end(names[3], compressed=True)) == (7, 0)
    assert table.verity(names[0]) == verity_digest(names[0])
    assert table.verity(Digest(b"\xff" * 32)) is None
