"""Ranges on their way, cut into chunks."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.chunkstore import planner
from snapshotter.chunkstore.arrivals import Arrivals, Decoder, read
from snapshotter.chunkstore.base import ChunkCorruptError
from snapshotter.chunkstore.planner import Limits, Range
from snapshotter.errors import CorruptError
from snapshotter.format.compression import Codec, encode_group
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.pack import PackEntry
from tests.support.chunks import MemoryBlobs, RangedBlobs, make_pack, some_chunks

CHUNKS = some_chunks(24)
PLACE, PACK, ENTRIES = make_pack(CHUNKS)


def some(numbers: set[int]) -> list[Range]:
    return planner.coalesce([ENTRIES[number] for number in numbers], Limits(gap=0))


@given(st.sets(st.integers(0, 23), min_size=1), st.integers(1, 3000), st.randoms())
def test_every_chunk_is_cut_out_whole_as_soon_as_it_has_come(numbers: set[int], size: int, order: random.Random) -> None:
    ranges = some(numbers)
    arrivals = Arrivals(ranges)
    decoder = Decoder("the pack")
    order.shuffle(ranges)
    found = {}
    for each in ranges:
        for at in range(each.offset, each.end, size):
            end = min(at + size, each.end)
            for entry, stored in arrivals.feed(at, PACK[at:end]):
                assert end - size < entry.offset + entry.stored_length <= end
                found[entry.digest] = decoder.decode(entry, stored)
    assert found == {ENTRIES[number].digest: CHUNKS[number] for number in numbers}


@pytest.mark.parametrize(("offset", "length"), [(0, 10), (ENTRIES[3].offset + 1, 10), (ENTRIES[3].offset, 100_000)])
def test_what_was_not_asked_for_is_corrupt(offset: int, length: int) -> None:
    arrivals = Arrivals(some({3, 4}))
    with pytest.raises(CorruptError, match="not asked for"):
        list(arrivals.feed(offset, bytes(length)))


def test_nothing_can_come_twice() -> None:
    arrivals = Arrivals(some({3}))
    stored = PACK[ENTRIES[3].offset :][: ENTRIES[3].stored_length]
    assert len(list(arrivals.feed(ENTRIES[3].offset, stored))) == 1
    with pytest.raises(CorruptError):
        list(arrivals.feed(ENTRIES[3].offset, stored))


def test_what_cannot_be_decoded_is_said_and_not_raised() -> None:
    error = Decoder("pack x of y").decode(ENTRIES[2], b"garbage")
    assert isinstance(error, ChunkCorruptError)
    assert error.where == "pack x of y"


@pytest.mark.parametrize("kind", [MemoryBlobs, RangedBlobs])
def test_a_reader_of_either_kind_is_read(kind: type[MemoryBlobs]) -> None:
    blobs = kind()
    blobs.add(PACK)
    ranges = some({1, 2, 9})
    found: dict[int, bytes] = {}
    for offset, block in read(blobs, PLACE.pack, ranges):
        start = next(each.offset for each in ranges if each.offset <= offset < each.end)
        found[start] = found.get(start, b"") + block
    assert found == {each.offset: PACK[each.offset : each.end] for each in ranges}
    assert len(blobs.asked) == (1 if isinstance(blobs, RangedBlobs) else 2)


def test_a_short_answer_is_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = MemoryBlobs()

    def short(digest: Digest, offset: int, length: int) -> bytes:
        return b"short"

    monkeypatch.setattr(blobs, "read_range", short)
    with pytest.raises(CorruptError, match="5 bytes came instead of"):
        list(read(blobs, PLACE.pack, some({1})))


@pytest.mark.parametrize("size", [1, 700, 1 << 20])
def test_the_chunks_of_a_group_share_the_bytes_that_are_stored_of_it(size: int) -> None:
    groups = [encode_group(CHUNKS[:9], 3), encode_group(CHUNKS[9:12], 3)]
    body = groups[0] + groups[1]
    entries = []
    for number, raw in enumerate(CHUNKS[:12]):
        second = number >= 9
        within = sum(map(len, CHUNKS[9 * second : number]))
        start, stored = 100 + len(groups[0]) * second, len(groups[second])
        entries.append(PackEntry(sha256(raw), len(raw), start, stored, Codec.GROUP, within))
    arrivals = Arrivals([Range(100, len(body), tuple(entries))])
    decoder = Decoder("the pack")
    cut = [part for at in range(0, len(body), size) for part in arrivals.feed(100 + at, body[at : at + size])]
    assert [decoder.decode(*part) for part in cut] == CHUNKS[:12]
    assert len({id(stored) for _, stored in cut}) == 2
