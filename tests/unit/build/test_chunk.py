"""Cut points are pinned: a change here makes every stored image new data."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.build.chunk import UPSTREAM_CUTTING, ByteReader, CutChunk, Cutter, Cutting, Memory, assign
from snapshotter.errors import InvalidError
from snapshotter.format.digest import sha256
from tests.support.golden_data import noise, text

GOLDEN = Path(__file__).parents[2] / "golden" / "upstream"


class Dripping:
    """A reader that gives little at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data = io.BytesIO(data)
        self._step = step

    def readinto(self, buffer: memoryview, /) -> int:
        return self._data.readinto(buffer[: self._step])


def cut(reader: ByteReader, cutting: Cutting) -> list[bytes]:
    memory = Memory(cutting.maximum)
    return taken(Cutter(cutting), reader, memory)


def taken(cutter: Cutter, reader: ByteReader, memory: Memory) -> list[bytes]:
    chunks: list[bytes] = []
    for length, times in cutter.cut(reader, memory):
        chunks += [bytes(memory.take(length))] * times
    return chunks


def lengths(data: bytes, cutting: Cutting) -> list[int]:
    chunks = cut(io.BytesIO(data), cutting)
    assert b"".join(chunks) == data
    return [len(chunk) for chunk in chunks]


def test_cut_points_of_noise() -> None:
    data = noise("cut points", 1_000_000)
    assert lengths(data, Cutting()) == POINTS_2020
    assert lengths(data, Cutting(algorithm="2016")) == POINTS_2016


POINTS_2020 = [76407, 20255, 51198, 83628, 59889, 18968, 106168, 88109, 78933, 96871, 79848, 77683, 108696, 41738, 11609]
POINTS_2016 = [23991, 89270, 54338, 65101, 22332, 27639, 80104, 46777, 98355, 58881, 32619, 34158, 105862, 48257, 55186, 157130]


def test_zeros_are_cut_at_the_maximum() -> None:
    assert lengths(bytes(600 * 1024), Cutting()) == [262144, 262144, 600 * 1024 - 2 * 262144]


class Holed:
    """A reader of `data` that says where it has runs of zeros, and counts what is read of it."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self.read = 0

    def readinto(self, buffer: memoryview, /) -> int:
        count = min(len(buffer), self.hole() or len(self._data) - self._at)
        buffer[:count] = self._data[self._at : self._at + count]
        self._at += count
        self.read += count
        return count

    def hole(self) -> int:
        rest = self._data[self._at :]
        return len(rest) - len(rest.lstrip(b"\0"))

    def skip(self, count: int) -> None:
        assert count <= self.hole()
        self._at += count


def test_large_files_have_chunks_four_times_as_long() -> None:
    sizes = Cutting().of_large()
    assert (sizes.minimum, sizes.average, sizes.maximum) == (65536, 262144, 1048576)
    assert (sizes.longest, Cutting().longest) == (1048576, 1048576)
    assert UPSTREAM_CUTTING.longest == 262144
    assert lengths(noise("cut points", 2_000_000), sizes) == POINTS_LARGE
    assert lengths(bytes(2_500_000), sizes) == [1048576, 1048576, 2_500_000 - 2 * 1048576]


POINTS_LARGE = [291377, 697014, 320270, 511209, 173998, 6132]
SMALL = Cutting(minimum=256, average=1024, maximum=4096)


@pytest.mark.parametrize("algorithm", ["2020", "2016"])
@given(st.lists(st.tuples(st.integers(0, 30_000), st.integers(0, 3000)), max_size=5))
def test_holes_are_cut_as_zeros_are(algorithm: Literal["2020", "2016"], runs: list[tuple[int, int]]) -> None:
    data = b"".join(bytes(hole) + noise(str(hole), length) for hole, length in runs)
    cutting = replace(SMALL, algorithm=algorithm)
    assert cut(Holed(data), cutting) == cut(io.BytesIO(data), cutting)


def test_of_a_large_hole_only_its_ends_are_looked_at() -> None:
    reader = Holed(noise("before", 100_000) + bytes(100 << 20) + noise("behind", 100_000))
    chunks = cut(reader, Cutting())
    assert sum(map(len, chunks)) == 200_000 + (100 << 20)
    assert reader.read < 10 << 20


def test_nothing_is_no_chunk() -> None:
    assert lengths(b"", Cutting()) == []


@pytest.mark.parametrize("algorithm", ["2020", "2016"])
@pytest.mark.parametrize("step", [1000, 65536, 300_001])
def test_cuts_do_not_depend_on_reads_and_windows(algorithm: str, step: int) -> None:
    data = noise("window", 9_500_000)
    cutting = Cutting(algorithm=algorithm)  # type: ignore[arg-type]
    assert cut(Dripping(data, step), cutting) == cut(io.BytesIO(data), cutting)


def test_a_cutter_cuts_one_stream_after_another() -> None:
    """Also when they lie one after another in the same memory, and go on at its beginning when there is no room."""
    cutter, memory = Cutter(Cutting()), Memory(Cutting().maximum)
    streams = [noise(str(number % 3), 500_000 + 100_000 * (number % 3)) for number in range(20)]
    found = [taken(cutter, io.BytesIO(data), memory) for data in streams]
    assert [b"".join(chunks) for chunks in found] == streams
    assert found == [cut(io.BytesIO(data), Cutting()) for data in streams]


def test_one_stream_is_cut_as_upstream_cuts_it() -> None:
    """24.7 MB in 60 files: chunks, offsets and lengths as upstream's program wrote them."""
    makers: list[Callable[[str, int], bytes]] = [noise, text, lambda seed, size: bytes(size)]
    sizes = [0, 1, 4095, 4096, 16384, 65536, 262144, 262145, 1_000_003, 2_500_000]
    files = sorted((f"/{i:02d}-{sizes[i % 10]}", makers[i % 3](f"stream {i}", sizes[i % 10])) for i in range(60))
    stream = io.BytesIO(b"".join(data for _, data in files))
    chunks = [CutChunk(sha256(raw), len(raw)) for raw in cut(stream, UPSTREAM_CUTTING)]
    parts = assign([len(data) for _, data in files], chunks)
    found = [
        [name, len(data), [[part.digest.hex(), part.offset, part.length] for part in of_file]]
        for (name, data), of_file in zip(files, parts, strict=True)
    ]
    assert found == json.loads((GOLDEN / "large-stream" / "expect.json").read_text())["images"]["v0"]["files"]


@given(st.lists(st.integers(0, 50), max_size=20), st.data())
def test_assign_covers_every_file_in_order(sizes: list[int], data: st.DataObject) -> None:
    stream = bytes(index % 251 for index in range(sum(sizes)))
    chunks: dict[bytes, bytes] = {}
    pieces = []
    start = 0
    while start < len(stream):
        length = data.draw(st.integers(1, len(stream) - start))
        raw = start.to_bytes(4, "big") + stream[start : start + length]
        chunks[sha256(raw)] = stream[start : start + length]
        pieces.append(CutChunk(sha256(raw), length))
        start += length
    files = assign(sizes, pieces)
    assert [sum(part.length for part in parts) for parts in files] == sizes
    joined = b"".join(chunks[part.digest][part.offset : part.offset + part.length] for parts in files for part in parts)
    assert joined == stream
    assert all(part.length > 0 for parts in files for part in parts)


@pytest.mark.parametrize(("sizes", "chunks"), [([5], [4]), ([4], [5]), ([], [1])])
def test_assign_refuses_what_does_not_add_up(sizes: list[int], chunks: list[int]) -> None:
    with pytest.raises(ValueError, match="end before"):
        assign(sizes, [CutChunk(sha256(b""), length) for length in chunks])


@pytest.mark.parametrize(
    "wrong",
    [
        {"minimum": 100},
        {"minimum": 70_000},
        {"maximum": 1000},
        {"maximum": 32 << 20},
        {"algorithm": "2019"},
        {"align": 0},
        {"group": 0},
        {"large": 0},
        {"maximum": 8 << 20},
        {"average": 2 << 20, "maximum": 4 << 20},
    ],
)
def test_sizes_that_cannot_work_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidError):
        Cutting(**wrong)  # type: ignore[arg-type]
