"""What a file is made of, read in part and read whole: the same, wherever the parts lie, and of damaged messages."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.errors import CorruptError, NotFoundError
from snapshotter.format.digest import Digest
from snapshotter.format.filechunks import FILE_MAX, Chunk, FileChunks
from snapshotter.format.model import CHUNK_MAX, DirEntry, FileChunk, Inode, Kind, RootfsContent
from snapshotter.format.rootfs import Rootfs
from snapshotter.format.writer import encode

digests = st.binary(min_size=32, max_size=32).map(Digest)
chunks = st.builds(FileChunk, digests, st.integers(0, 1000), st.integers(1, 1 << 20), st.booleans())


def message(*files: Sequence[FileChunk]) -> bytes:
    """Files from number 2 on."""
    names = [DirEntry(ino, b"%09d" % ino) for ino in range(2, 2 + len(files))]
    root = Inode(1, Kind.DIR, entries=names)
    return encode(RootfsContent([[root, *(Inode(ino, Kind.FILE, chunks=each) for ino, each in enumerate(files, 2))]]))


def many(count: int) -> list[FileChunk]:
    return [FileChunk(Digest(row.to_bytes(32, "big")), row % 7, row + 1, row % 3 == 0) for row in range(count)]


def parts(rootfs: Rootfs, ino: int, first: int, last: int) -> list[Chunk]:
    """Some of what the file is made of."""
    found = rootfs.chunks(ino)
    assert found is not None
    return found.between(first, min(last, len(found))) if isinstance(found, FileChunks) else [found][first:last]


def plain(found: Sequence[FileChunk]) -> list[Chunk]:
    return [(each.digest, each.offset, each.length, each.compressed) for each in found]


@given(st.lists(st.lists(chunks, max_size=6), min_size=1, max_size=8), st.integers(0, 5), st.integers(1, 6))
def test_a_part_is_what_it_is_in_the_whole(files: list[list[FileChunk]], first: int, count: int) -> None:
    rootfs = Rootfs.open(message(*files))
    for ino, file in enumerate(files, 2):
        assert parts(rootfs, ino, first, first + count) == plain(file)[first : first + count]


@pytest.mark.parametrize("count", [100, 1_000, 5_000])
def test_a_list_that_does_not_fit_into_a_segment_is_read_alike(count: int) -> None:
    """Its first blobs are in the list's segment, the others are not."""
    files = [many(count), many(1), many(count * 2)]
    rootfs = Rootfs.open(message(*files))
    for ino, file in enumerate(files, 2):
        assert parts(rootfs, ino, 0, len(file)) == plain(file) == plain(rootfs.inode(ino).chunks)
        for first in range(0, len(file), 13):
            assert parts(rootfs, ino, first, first + 17) == plain(file)[first : first + 17]
    found = rootfs.chunks(2)
    assert isinstance(found, FileChunks)
    ends = found.ends()
    assert [end - begin for begin, end in zip([0, *ends], ends, strict=False)] == [each.length for each in files[0]]


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_of_a_damaged_message_both_ways_give_the_same_or_one_refuses(data: st.DataObject) -> None:
    damaged = bytearray(message(many(1), many(3), many(200)))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        rootfs = Rootfs.open(bytes(damaged))
    except CorruptError:
        return
    for ino in (2, 3, 4):
        try:
            whole = rootfs.inode(ino)
            if whole.kind is Kind.FILE:
                assert parts(rootfs, ino, 0, len(whole.chunks)) == plain(whole.chunks)
            else:
                assert rootfs.chunks(ino) is None
        except (CorruptError, NotFoundError):
            continue


def test_a_directory_is_no_file_and_a_file_may_be_empty() -> None:
    rootfs = Rootfs.open(message([]))
    assert rootfs.chunks(1) is None
    assert parts(rootfs, 2, 0, 1) == []


@pytest.mark.parametrize("lengths", [(0, 1), (1, 0, 1)])
def test_a_chunk_without_bytes_is_refused_before_any_is_read(lengths: Sequence[int]) -> None:
    found = Rootfs.open(message([FileChunk(Digest(bytes(32)), 0, length) for length in lengths])).chunks(2)
    assert isinstance(found, FileChunks)
    with pytest.raises(CorruptError, match="without bytes"):
        found.ends()


def test_a_file_longer_than_files_can_be_is_refused() -> None:
    found = Rootfs.open(message([FileChunk(Digest(bytes(32)), 0, FILE_MAX), FileChunk(Digest(bytes(32)), 0, 1)])).chunks(2)
    assert isinstance(found, FileChunks)
    with pytest.raises(CorruptError, match="a file of"):
        found.ends()


@pytest.mark.parametrize("count", [1, 2])
def test_a_chunk_that_is_too_long_is_refused(count: int) -> None:
    rootfs = Rootfs.open(message([FileChunk(Digest(bytes(32)), 1, CHUNK_MAX)] * count))
    with pytest.raises(CorruptError, match="has at most"):
        parts(rootfs, 2, 0, count)
