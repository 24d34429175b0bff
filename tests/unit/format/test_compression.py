"""Compression is bounded: what comes out is what was declared, or an error."""

from __future__ import annotations

import os

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.errors import CorruptError
from snapshotter.format.compression import (
    Codec,
    compress,
    compress_parts,
    decode_chunk,
    decode_seekable,
    decompress,
    encode_chunk,
    encode_seekable,
)

BOMB = zstandard.ZstdCompressor(level=19, write_content_size=False).compress(bytes(64 << 20))


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=20_000))
def test_chunks_come_back(raw: bytes) -> None:
    codec, stored = encode_chunk(raw, 3)
    assert len(stored) <= len(raw)
    assert decode_chunk(codec, stored, len(raw)) == raw


def test_incompressible_chunks_are_stored_raw() -> None:
    raw = os.urandom(4096)
    assert encode_chunk(raw, 3) == (Codec.RAW, raw)


@pytest.mark.parametrize("declared", [0, 1, 9_999, 10_001])
def test_a_chunk_of_another_length_than_declared_is_refused(declared: int) -> None:
    raw = b"ab" * 5_000
    for codec, stored in ((Codec.RAW, raw), (Codec.ZSTD, compress(raw))):
        with pytest.raises(CorruptError, match=str(declared)):
            decode_chunk(codec, stored, declared)


@pytest.mark.parametrize(
    "stored",
    [b"", b"\x28\xb5\x2f\xfd", b"garbage", compress(b"x" * 1000)[:-3], compress(b"x" * 1000) + b"tail", BOMB],
    ids=["empty", "magic", "garbage", "cut", "tail", "bomb"],
)
def test_a_frame_that_is_not_one_whole_frame_of_that_length_is_refused(stored: bytes) -> None:
    with pytest.raises(CorruptError):
        decode_chunk(Codec.ZSTD, stored, 1000)


def test_a_blob_beyond_its_limit_is_refused_before_it_is_decoded() -> None:
    assert decompress(compress(bytes(1000)), 1000) == bytes(1000)
    with pytest.raises(CorruptError, match="at most 999"):
        decompress(compress(bytes(1000)), 999)
    with pytest.raises(CorruptError, match="without a content size"):
        decompress(BOMB, 1 << 30)


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=300), st.integers(1, 100))
def test_seekable_chunks_come_back(seed: bytes, repeats: int) -> None:
    raw = seed * repeats
    stored = encode_seekable(raw)
    if stored is not None:
        assert len(stored) < len(raw)
        assert decode_seekable(stored, len(raw)) == raw


@pytest.mark.parametrize("limit", [0, 4095, 8191])
def test_a_seekable_chunk_beyond_its_limit_is_refused(limit: int) -> None:
    stored = encode_seekable(bytes(8192))
    assert stored is not None
    with pytest.raises(CorruptError, match="more than"):
        decode_seekable(stored, limit)
    with pytest.raises(CorruptError, match="more than"):
        decode_seekable(BOMB, limit)


@pytest.mark.parametrize("cut", [1, 5, 10])
def test_a_seekable_chunk_that_is_cut_within_a_frame_is_refused(cut: int) -> None:
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(os.urandom(100))
    with pytest.raises(CorruptError):
        decode_seekable(frame[:-cut], 1000)


@pytest.mark.parametrize("size", [0, 1, 1000, 1 << 17, 300_000])
def test_parts_are_one_frame_that_does_not_depend_on_where_they_end(size: int) -> None:
    raw = (b"what is repeated, %d times; " * 20_000)[:size]
    found = {
        b"".join(compress_parts([raw[start : start + unit] for start in range(0, size, unit)], size, 9))
        for unit in (1, 1000, 1 << 17, 1 << 20)[size > 1000 :]
    }
    assert len(found) == 1
    assert decompress(found.pop(), size) == raw


@pytest.mark.parametrize("said", [999, 1001])
def test_parts_that_are_not_as_long_as_was_said(said: int) -> None:
    with pytest.raises(ValueError, match=f"not {said} bytes"):
        b"".join(compress_parts([bytes(500), bytes(500)], said, 9))
