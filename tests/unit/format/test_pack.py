"""Packs: indexes that find every chunk, footers, and bounds on what a hostile index may claim."""

from __future__ import annotations

from pathlib import Path

import capnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.errors import CorruptError
from snapshotter.format import packindex
from snapshotter.format.compression import Codec, compress, decode_chunk, encode_chunk
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.pack import FOOTER_SIZE, HEADER, PackEntry, PackIndex, parse_footer, trailer

SCHEMA = capnp.load(str(Path(packindex.__file__).parents[1] / "schema" / "pack.capnp"))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=300), unique=True, max_size=40))
def test_every_chunk_is_found_where_it_was_put(chunks: list[bytes]) -> None:
    body = bytearray(HEADER)
    entries = []
    for raw in chunks:
        codec, stored = encode_chunk(raw, 3)
        entries.append(PackEntry(sha256(raw), len(raw), len(body), len(stored), codec))
        body += stored
    end, length = trailer(entries, len(body))
    pack = bytes(body) + end
    offset, stored_length = parse_footer(pack[-FOOTER_SIZE:], len(pack))
    assert (offset, stored_length) == (len(body), length)
    index = PackIndex.parse(pack[offset : offset + stored_length], offset)
    assert len(index) == len(chunks)
    assert list(index) == sorted(entries, key=lambda entry: entry.digest)
    for raw in chunks:
        entry = index.find(sha256(raw))
        assert entry is not None
        stored = pack[entry.offset : entry.offset + entry.stored_length]
        assert decode_chunk(entry.codec, stored, entry.raw_length) == raw
    assert index.find(sha256(b"not in it, being longer than" + bytes(300))) is None


A, B = sorted([sha256(b"a"), sha256(b"b")])


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ([PackEntry(A, 10, 95, 10, Codec.RAW)], "outside the pack"),
        ([PackEntry(A, 10, 2**63, 10, Codec.RAW)], "outside the pack"),
        ([PackEntry(A, 10, 7, 10, Codec.RAW)], "outside the pack"),
        ([PackEntry(A, 17 << 20, 8, 10, Codec.ZSTD)], "are accepted"),
        ([PackEntry(A, 10, 8, 0, Codec.ZSTD)], "stored in 0"),
        ([PackEntry(A, 10, 8, 11, Codec.ZSTD)], "stored in 11"),
        ([PackEntry(A, 1, 8, 1, Codec.RAW), PackEntry(A, 1, 8, 1, Codec.RAW)], "order of their digests"),
        ([PackEntry(A, 1, 8, 1, 7)], "codec 7"),  # type: ignore[arg-type]
    ],
)
def test_an_index_that_breaks_a_rule_is_refused(entries: list[PackEntry], complaint: str) -> None:
    stored, length = trailer(entries, 100)
    with pytest.raises(CorruptError, match=complaint):
        PackIndex.parse(stored[:length], 100)


@pytest.mark.parametrize("stored", [b"", b"garbage", compress(b""), compress(b"garbage" * 10), compress(bytes(64))])
def test_what_is_no_index_is_refused(stored: bytes) -> None:
    with pytest.raises(CorruptError):
        PackIndex.parse(stored, 100)


@pytest.mark.parametrize(
    ("footer", "complaint"),
    [
        (b"", "footer has 24 bytes"),
        (bytes(FOOTER_SIZE), "magic is missing"),
        (b"PZFSPACK" + (2).to_bytes(4, "little") + bytes(12), "pack version 2"),
        (b"PZFSPACK" + (1).to_bytes(4, "little") + bytes(12), "places the index at 0"),
    ],
)
def test_what_is_no_footer_is_refused(footer: bytes, complaint: str) -> None:
    with pytest.raises(CorruptError, match=complaint):
        parse_footer(footer, 1000)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_index_gives_an_error_or_an_index_within_bounds(data: st.DataObject) -> None:
    message = bytearray(packindex.encode(packindex.PackColumns(A + B, [5, 6], [8, 13], [5, 6], [0, 0])))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    try:
        index = PackIndex.parse(compress(bytes(message)), 19)
    except CorruptError:
        return
    assert all(entry.offset + entry.stored_length <= 19 for entry in index)


U32 = st.integers(0, 2**32 - 1)
ROWS = st.lists(st.tuples(st.binary(min_size=32, max_size=32), U32, st.integers(0, 2**64 - 1), U32, st.integers(0, 255), U32))


@settings(max_examples=100, deadline=None)
@given(ROWS, st.booleans(), st.booleans())
def test_pycapnp_finds_in_an_index_what_we_do_whoever_wrote_it(
    rows: list[tuple[bytes, int, int, int, int, int]], groups: bool, theirs: bool
) -> None:
    digests, raw, offsets, stored, codecs, within = zip(*rows, strict=True) if rows else [()] * 6
    columns = packindex.PackColumns(b"".join(digests), raw, offsets, stored, codecs, within if groups else ())
    message = packindex.encode(columns)
    with SCHEMA.PackIndex.from_bytes(message) as root:
        if theirs:
            message = root.as_builder().to_bytes()
    for data in (message, packindex.encode(columns)):
        ours = packindex.decode(data)
        with SCHEMA.PackIndex.from_bytes(data) as root:
            oracle = (root.digests, root.rawLengths, root.offsets, root.storedLengths, root.codecs, root.within)
            found = (ours.digests, ours.raw_lengths, ours.offsets, ours.stored_lengths, ours.codecs, ours.within)
            assert [list(values) for values in found] == [list(values) for values in oracle]


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        (packindex.PackColumns(A, [1, 2], [1], [1], [0]), "columns that differ in length"),
        (packindex.PackColumns(A, [1], [1, 2], [1], [0]), "2 numbers where at most 1"),
        (packindex.PackColumns(A, [1], [], [1], [0]), "columns that differ in length"),
        (packindex.PackColumns(A + B, [1, 2], [1, 2], [1, 2], [0, 0], [3]), "columns that differ in length"),
        (packindex.PackColumns(b"", [1] * 1000, [1] * 1000, [1] * 1000, [0] * 1000), "1000 rows in a message of"),
    ],
)
def test_columns_of_other_lengths_than_there_are_rows_are_refused(columns: packindex.PackColumns, complaint: str) -> None:
    with pytest.raises(CorruptError, match=complaint):
        packindex.decode(packindex.encode(columns))


def test_digests_are_values_of_their_own_type() -> None:
    assert Digest(A) == A
