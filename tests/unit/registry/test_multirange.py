"""Answers with several ranges: what is right comes, and what a hostile or simple server sends does no harm."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapshotter.registry import multirange
from snapshotter.registry.failures import RegistryUnavailableError
from snapshotter.registry.multirange import ASK_AGAIN, Manner, ManyRefusedError
from snapshotter.registry.ranges import Extent
from snapshotter.registry.transport import Response
from tests.support.registry import multipart

DATA = random.Random(0).randbytes(300_000)
TYPE = "multipart/byteranges; boundary=abc"
WANTED = [Extent(10, 100), Extent(5000, 70_000), Extent(200_000, 1)]


class Answer:
    """A `Response` from memory, in pieces of at most `piece` bytes; it counts what was read of it."""

    def __init__(self, body: bytes, status: int = 206, kind: str = TYPE, piece: int = 1 << 20) -> None:
        self._body = io.BytesIO(body)
        self._piece = piece
        self.status = status
        self.headers: Mapping[str, str] = {"Content-Type": kind}
        self.origin = "http://registry"
        self.taken = 0

    def read(self, size: int) -> bytes:
        data = self._body.read(min(size, self._piece))
        self.taken += len(data)
        return data


def read(answer: Answer, wanted: Sequence[Extent]) -> dict[int, bytes]:
    """What came, by the offsets of the ranges."""
    found: dict[int, bytes] = {}
    at: dict[int, int] = {}
    for offset, block in multirange.blocks(cast(Response, answer), wanted, "blob"):
        start = at.pop(offset, offset)
        found[start] = found.get(start, b"") + block
        at[offset + len(block)] = start
    return found


def cut(extents: Sequence[Extent]) -> list[tuple[int, bytes]]:
    return [(offset, DATA[offset : offset + length]) for offset, length in extents]


@settings(deadline=None)
@given(st.lists(st.integers(0, 20_000), min_size=4, max_size=24, unique=True), st.randoms(), st.integers(1, 5000))
def test_every_range_comes_in_whatever_order_and_pieces(edges: list[int], order: random.Random, piece: int) -> None:
    edges.sort()
    extents = [Extent(start, end - start) for start, end in list(pairwise(edges))[::2]]
    parts = cut(extents)
    order.shuffle(parts)
    body = multipart(parts, len(DATA), b"abc")
    assert read(Answer(body, piece=piece), extents) == dict(cut(extents))


@pytest.mark.parametrize(
    "kind",
    [
        'multipart/byteranges; boundary="abc"',
        "Multipart/ByteRanges;boundary=abc; charset=x",
        "multipart/byteranges; x=y; boundary=abc",
    ],
)
def test_the_boundary_is_found_however_it_is_written(kind: str) -> None:
    assert read(Answer(multipart(cut(WANTED), len(DATA), b"abc"), kind=kind), WANTED) == dict(cut(WANTED))


def test_an_empty_line_may_come_first() -> None:
    assert read(Answer(b"\r\n" + multipart(cut(WANTED), len(DATA), b"abc")), WANTED) == dict(cut(WANTED))


def test_what_is_asked_for_is_one_header() -> None:
    assert multirange.header(WANTED) == {"Range": "bytes=10-109,5000-74999,200000-200000"}


GOOD = multipart(cut(WANTED), len(DATA), b"abc")


@pytest.mark.parametrize(
    "answer",
    [
        Answer(DATA, status=200, kind="application/octet-stream"),
        Answer(b"", status=416),
        Answer(b"no", status=400, kind="text/plain"),
        Answer(DATA[10:110], kind="application/octet-stream"),
        Answer(GOOD, kind="multipart/byteranges"),
        Answer(GOOD, kind=f"multipart/byteranges; boundary={'x' * 71}"),
        Answer(GOOD, kind="multipart/byteranges; boundary=other"),
        Answer(multipart([(0, DATA[:75_000]), (200_000, DATA[200_000:200_001])], len(DATA), b"abc")),  # joined
        Answer(multipart([*cut(WANTED[:1]), *cut(WANTED[:1])], len(DATA), b"abc")),  # one twice
        Answer(multipart(cut(WANTED[:2]), len(DATA), b"abc")),  # one lacks
        Answer(GOOD.replace(b"bytes 10-109", b"bytes 10-108")),
        Answer(GOOD.replace(b"Content-Range", b"Content-Other")),
        Answer(GOOD.replace(b"bytes 10-109", b"bytes 109-10")),
        Answer(b"--abc\r\n" + b"X: y\r\n" * 1000 + GOOD),
        Answer(b"preamble\r\n" + GOOD),
    ],
)
def test_another_answer_than_was_asked_for_is_refused(answer: Answer) -> None:
    with pytest.raises(ManyRefusedError):
        read(answer, WANTED)


@pytest.mark.parametrize("noise", [b"x" * 10_000_000, b"--abc\r\nX: " + b"y" * 10_000_000, b"\r\n" * 5_000_000])
def test_a_head_without_an_end_is_not_read_to_its_end(noise: bytes) -> None:
    answer = Answer(noise)
    with pytest.raises(ManyRefusedError):
        read(answer, WANTED)
    assert answer.taken < 1 << 20


@pytest.mark.parametrize("left", [5, 60, 300, 40_000])
def test_an_answer_that_ends_early_is_worth_a_retry(left: int) -> None:
    with pytest.raises(RegistryUnavailableError) as caught:
        read(Answer(GOOD[:left]), WANTED)
    assert caught.value.retryable


@given(st.binary(max_size=400), st.integers(0, 400))
def test_no_bytes_raise_anything_else(noise: bytes, at: int) -> None:
    body = bytearray(GOOD)
    body[at : at + len(noise)] = noise
    try:
        found = read(Answer(bytes(body)), WANTED)
    except (ManyRefusedError, RegistryUnavailableError):
        return
    assert {offset: len(data) for offset, data in found.items()} == dict(WANTED)


@pytest.mark.parametrize(
    ("known", "seconds", "then"),
    [
        (Manner(), 1e9, None),
        (Manner(True, 50.0), 1e9, True),
        (Manner(False, 50.0), 50.0 + ASK_AGAIN - 1, False),
        (Manner(False, 50.0), 50.0 + ASK_AGAIN, None),
    ],
)
def test_a_refusal_is_forgotten_after_a_while_and_nothing_else_is(known: Manner, seconds: float, then: bool | None) -> None:
    assert known.at(seconds).answers is then
