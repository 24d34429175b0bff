"""What is read with what is read."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from snapshotter.mount.companions import SEGMENTS_MAX, loaded_at_start


def elf(segments: list[tuple[int, int, int, int]], count: int | None = None, offset: int = 64, size: int = 56) -> bytes:
    """A 64-bit ELF header with program headers of (type, flags, file offset, file size)."""
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHH", 3, 62, 1, 0, offset, 0, 0, 64, size, count or len(segments)
    )
    head = head.ljust(64, b"\0")
    for kind, flags, start, length in segments:
        head += struct.pack("<IIQQQQQQ", kind, flags, start, 0, 0, length, length, 4096)
    return head.ljust(832, b"\0")


LOAD, NOTE, R, RX, RW = 1, 4, 4, 5, 6


def test_the_first_segment_and_the_written_ones_are_loaded_at_start() -> None:
    head = elf(
        [(LOAD, R, 0, 5000), (LOAD, RX, 8192, 100_000), (LOAD, R, 120_000, 9000), (LOAD, RW, 130_000, 7000), (NOTE, R, 0, 9)]
    )
    assert loaded_at_start(head) == [(0, 5000), (130_000, 7000)]


def test_a_real_program_is_understood() -> None:
    head = Path("/bin/sh").read_bytes()[:4096]
    segments = loaded_at_start(head)
    assert segments[0][0] == 0
    assert len(segments) == 2


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"#!/bin/sh\n",
        b"\x7fELF",
        elf([(LOAD, R, 0, 10)])[:63],
        b"\x7fELF\x01\x01" + elf([(LOAD, R, 0, 10)])[6:],  # 32 bits
        elf([(LOAD, R, 0, 10)], count=65),
        elf([(LOAD, R, 0, 10)], offset=1 << 60),
        elf([(LOAD, R, 0, 10)], size=8),
        elf([(LOAD, R, 0, 10)], count=60),  # not all of them in what was read
    ],
)
def test_anything_else_is_no_reason_to_fetch_more(head: bytes) -> None:
    assert loaded_at_start(head) == []


def test_what_a_hostile_file_can_have_fetched_is_bounded() -> None:
    assert loaded_at_start(elf([(LOAD, RW, 0, SEGMENTS_MAX + 1)])) == []
    many = loaded_at_start(elf([(LOAD, RW, number << 20, 1 << 20) for number in range(12)]))
    assert sum(length for _, length in many) <= SEGMENTS_MAX
