"""Packs whose chunks are stored in groups."""

from __future__ import annotations

from array import array

import pytest

from snapshotter.errors import CorruptError
from snapshotter.format import packindex
from snapshotter.format.compression import GROUP_RAW_MAX, Codec, compress, decode_chunk, decode_group, encode_group
from snapshotter.format.digest import sha256
from snapshotter.format.pack import HEADER, PackEntry, PackIndex, trailer
from tests.support.chunks import some_chunks

CHUNKS = some_chunks(3)


def test_an_index_tells_where_a_chunk_is_in_its_group() -> None:
    stored = encode_group(CHUNKS, 3)
    at, entries = 0, []
    for raw in CHUNKS:
        entries.append(PackEntry(sha256(raw), len(raw), len(HEADER), len(stored), Codec.GROUP, at))
        at += len(raw)
    end, length = trailer(entries, len(HEADER) + len(stored))
    index = PackIndex.parse(end[:length], len(HEADER) + len(stored))
    assert index.has_groups
    raw = decode_group(stored)
    for chunk in CHUNKS:
        entry = index.find(sha256(chunk))
        assert entry is not None
        assert raw[entry.within : entry.within + entry.raw_length] == chunk


def test_an_index_without_groups_stays_as_it_was() -> None:
    raw = CHUNKS[0]
    end, length = trailer([PackEntry(sha256(raw), len(raw), len(HEADER), len(raw), Codec.RAW)], len(HEADER) + len(raw))
    columns = packindex.PackColumns(
        sha256(raw), array("I", [len(raw)]), array("Q", [8]), array("I", [len(raw)]), array("B", [0])
    )
    assert end[:length] == compress(packindex.encode(columns))
    assert not PackIndex.parse(end[:length], len(HEADER) + len(raw)).has_groups


@pytest.mark.parametrize(
    ("raw", "stored", "within"),
    [(1, 100, GROUP_RAW_MAX), (0, 100, 0), (GROUP_RAW_MAX, 100, 1), (1, GROUP_RAW_MAX + (1 << 17), 0)],
)
def test_a_group_beyond_what_is_accepted_is_refused(raw: int, stored: int, within: int) -> None:
    end, length = trailer([PackEntry(sha256(b""), raw, len(HEADER), stored, Codec.GROUP, within)], 1 << 30)
    with pytest.raises(CorruptError, match="group"):
        PackIndex.parse(end[:length], 1 << 30)


def test_a_group_that_decodes_to_more_is_refused() -> None:
    with pytest.raises(CorruptError, match="at most"):
        decode_group(compress(bytes(GROUP_RAW_MAX + 1)))


def test_a_chunk_of_a_group_is_none_alone() -> None:
    with pytest.raises(CorruptError, match="group"):
        decode_chunk(Codec.GROUP, encode_group(CHUNKS, 3), len(CHUNKS[0]))
