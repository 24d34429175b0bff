"""Which chunks go into which pack."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.build.pack import PackLayout, PackPlan, PackStream, digest_of, lay_out, plan_packs
from snapshotter.build.spool import SpooledChunk
from snapshotter.format.compression import decode_chunk, encode_chunk
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.pack import FOOTER_SIZE, HEADER, PackIndex, parse_footer
from tests.support.chunks import some_chunks


def d(name: int) -> Digest:
    return sha256(b"%d" % name)


def ds(*numbers: int) -> list[Digest]:
    return [d(number) for number in numbers]


def plan_of(
    layers: list[list[Digest]], new: dict[Digest, int], reused: dict[Digest, tuple[int, int]], **limits: int
) -> PackPlan:
    plan = plan_packs(layers, lambda digest: (None, new[digest]) if digest in new else reused[digest], **limits)
    return PackPlan(plan.kept, list(map(list, plan.new)))


def test_one_pack_a_layer_in_walk_order_each_chunk_once() -> None:
    new = dict.fromkeys(ds(1, 2, 3, 4), 10)
    plan = plan_of([ds(2, 1), ds(1, 3), ds(2), ds(4)], new, {})
    assert (plan.kept, plan.new) == ([], [ds(2, 1), ds(3), ds(4)])


def test_a_large_layer_is_split() -> None:
    new = dict.fromkeys(ds(1, 2, 3, 4, 5), 10)
    assert plan_of([ds(1, 2, 3, 4, 5)], new, {}, pack_bytes=25).new == [ds(1, 2), ds(3, 4), ds(5)]
    assert plan_of([ds(1)], {d(1): 100}, {}, pack_bytes=25).new == [ds(1)]


def test_needed_packs_are_kept_and_others_not_named() -> None:
    plan = plan_of([ds(1, 2, 3)], {d(3): 10}, {d(1): (4, 10), d(2): (1, 10), d(9): (2, 10)})
    assert (plan.kept, plan.new) == ([1, 4], [ds(3)])


def test_nothing_new_is_no_new_pack() -> None:
    assert plan_of([ds(1)], {}, {d(1): (0, 5)}).new == []
    assert plan_of([[]], {}, {}).new == []


def test_too_many_new_packs_are_put_together_smallest_neighbours_first() -> None:
    sizes = {1: 100, 2: 1, 3: 1, 4: 90, 5: 2}
    plan = plan_of([ds(n) for n in sizes], {d(n): size for n, size in sizes.items()}, {}, most=3)
    assert plan.new == [ds(1), ds(2, 3, 4), ds(5)]


def test_the_emptiest_old_packs_are_written_anew() -> None:
    reused = {d(n): (n, 10 * n) for n in range(1, 6)}
    plan = plan_of([ds(5, 4, 3, 2, 1), ds(6)], {d(6): 10}, reused, most=4)
    assert plan.kept == [3, 4, 5]
    assert plan.new == [ds(2, 1, 6)]


def test_too_many_old_packs_and_nothing_new() -> None:
    reused = {d(n): (n, 10) for n in range(20)}
    plan = plan_of([ds(*range(20))], {}, reused)
    assert len(plan.kept) == 15
    assert plan.new == [ds(0, 1, 2, 3, 4)]


def test_as_many_old_packs_as_allowed_stay_if_nothing_is_new() -> None:
    plan = plan_of([ds(*range(16))], {}, {d(n): (n, 10) for n in range(16)})
    assert (list(plan.kept), plan.new) == (list(range(16)), [])


@given(
    st.lists(st.lists(st.integers(0, 60), max_size=30, unique=True), max_size=25),
    st.dictionaries(st.integers(0, 60), st.integers(0, 30)),
    st.integers(1, 16),
    st.integers(1, 60),
)
def test_every_chunk_is_in_exactly_one_place_and_packs_are_few(
    layers: list[list[int]], homes: dict[int, int], most: int, pack_bytes: int
) -> None:
    reused = {d(n): (home, 1 + n % 7) for n, home in homes.items()}
    new = {d(n): 1 + n % 7 for layer in layers for n in layer if n not in homes}
    plan = plan_of([ds(*layer) for layer in layers], new, reused, most=most, pack_bytes=pack_bytes)
    assert len(plan.kept) + len(plan.new) <= most
    written = [digest for pack in plan.new for digest in pack]
    assert len(written) == len(set(written))
    wanted = {d(n) for layer in layers for n in layer}
    from_old = {digest for digest in wanted if digest in reused and reused[digest][0] in plan.kept}
    assert set(written) == wanted - from_old
    assert set(plan.kept) == {reused[digest][0] for digest in from_old}
    assert all(plan.new)
    assert list(plan.kept) == sorted(plan.kept)


class Stored:
    """Chunks in their stored form, one after another, a gap before every third one; `chunks` the other way round."""

    def __init__(self, raws: Sequence[bytes]) -> None:
        self.chunks = {sha256(raw): raw for raw in reversed(raws)}
        self._places: dict[Digest, SpooledChunk] = {}
        self._bytes = b""
        for number, (digest, raw) in enumerate(sorted(self.chunks.items(), key=lambda item: len(item[1]))):
            codec, data = encode_chunk(raw, 3)
            self._bytes += b"gap" if number % 3 == 0 else b""
            self._places[digest] = SpooledChunk(len(self._bytes), len(data), len(raw), codec)
            self._bytes += data

    def find(self, digest: Digest) -> SpooledChunk:
        return self._places[digest]

    def readinto(self, buffer: memoryview, offset: int) -> int:
        """Little at a time."""
        piece = self._bytes[offset : offset + min(len(buffer), 10_000)]
        buffer[: len(piece)] = piece
        return len(piece)

    def stream(self, order: Sequence[Digest]) -> tuple[PackLayout, PackStream]:
        pack = lay_out(order, self.find)
        return pack, PackStream(pack, self.readinto)


@pytest.mark.parametrize("order", ["as they lie", "other"])
def test_what_is_written_can_be_read_by_ranges(order: str) -> None:
    stored = Stored(some_chunks(30))
    chunks = stored.chunks
    if order == "as they lie":
        chunks = {digest: chunks[digest] for digest in sorted(chunks, key=lambda digest: stored.find(digest).offset)}
    pack, stream = stored.stream(list(chunks))
    blob = stream.read()
    for start in (0, 5, len(HEADER), 10_000, pack.index_offset, pack.size - 1, pack.size, pack.size + 9):
        assert stream.seek(start) == stream.tell() == start
        assert stream.read() == blob[start:]
    assert stream.seek(-3, io.SEEK_END) == pack.size - 3
    assert stream.read(2) == blob[-3:-1]
    assert stream.seek(-1, io.SEEK_CUR) == pack.size - 2
    assert (sha256(blob), len(blob)) == (digest_of(pack, stored.readinto), pack.size)
    assert parse_footer(blob[-FOOTER_SIZE:], len(blob)) == (pack.index_offset, pack.index_length)
    index_bytes = blob[pack.index_offset :][: pack.index_length]
    index = PackIndex.parse(index_bytes, pack.index_offset)
    assert len(index) == len(pack.index) == 30
    at = len(HEADER)
    for digest, raw in chunks.items():
        entry = index.find(digest)
        assert entry is not None
        assert entry.offset == at
        at += entry.stored_length
        assert decode_chunk(entry.codec, blob[entry.offset :][: entry.stored_length], entry.raw_length) == raw


def test_a_pack_does_not_look_like_a_compressed_layer() -> None:
    """Its diff ID is its digest; containerd's DetectCompression would decompress what begins like gzip or zstd."""
    _, packed = Stored([b"compressible " * 1000]).stream([sha256(b"compressible " * 1000)])
    assert not packed.read().startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\x2a\x4d\x18"))
