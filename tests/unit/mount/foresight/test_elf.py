"""What an ELF file says about how it is loaded, and what a hostile one may say."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.mount.foresight import elf
from snapshotter.mount.foresight.elf import Extent, Segment
from tests.support.programs import DYNAMIC, INTERP, LOAD, RW, RX, R, header, program


def reading(data: bytes) -> elf.Read:
    return lambda offset, length: data[offset : offset + length]


def test_segments_dynamic_section_and_interpreter_are_found() -> None:
    head = header(
        [(LOAD, R, 0, 5000), (LOAD, RX, 8192, 9000), (LOAD, RW, 20000, 700), (DYNAMIC, RW, 20100, 64), (INTERP, R, 800, 28)]
    )
    found = elf.parse(head)
    assert found is not None
    assert found.segments == (
        Segment(0, 0, 5000, executable=False, written=False),
        Segment(8192, 8192, 9000, executable=True, written=False),
        Segment(20000, 20000, 700, executable=False, written=True),
    )
    assert (found.dynamic, found.interpreter) == (Extent(20100, 64), Extent(800, 28))


def test_a_real_program_is_understood() -> None:
    data = Path("/bin/sh").read_bytes()
    found = elf.parse(data[: elf.HEAD])
    assert found is not None
    assert b"libc.so.6" in elf.needed(found, reading(data))
    loader = elf.interpreter(found, reading(data))
    assert loader is not None
    assert Path(loader.decode()).exists()


def test_the_libraries_are_named_in_their_order() -> None:
    data = program([b"libb.so.1", b"liba.so.2"], b"/lib/ld.so")
    found = elf.parse(data[: elf.HEAD])
    assert found is not None
    assert elf.needed(found, reading(data)) == [b"libb.so.1", b"liba.so.2"]
    assert elf.interpreter(found, reading(data)) == b"/lib/ld.so"


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"#!/bin/sh\n",
        b"\x7fELF",
        header([(LOAD, R, 0, 10)])[:63],
        b"\x7fELF\x01\x01" + header([(LOAD, R, 0, 10)])[6:],  # 32 bits
        header([(LOAD, R, 0, 10)], count=65),
        header([(LOAD, R, 0, 10)], offset=1 << 60),
        header([(LOAD, R, 0, 10)], size=8),
        header([(LOAD, R, 0, 10)], count=60)[:500],  # not all of them in what was read
    ],
)
def test_anything_else_is_none(head: bytes) -> None:
    assert elf.parse(head) is None


@pytest.mark.parametrize("name", [b"../../etc/shadow", b"/lib/libc.so.6", b"", b"x" * 300])
def test_a_name_that_is_no_file_name_is_left_out(name: bytes) -> None:
    data = program([name, b"libc.so.6"])
    found = elf.parse(data[: elf.HEAD])
    assert found is not None
    assert elf.needed(found, reading(data)) == [b"libc.so.6"]


def test_what_a_hostile_file_has_looked_at_is_bounded() -> None:
    data = program([b"lib%d.so" % number for number in range(500)])
    found = elf.parse(data[: elf.HEAD])
    assert found is not None
    asked: list[int] = []

    def read(offset: int, length: int) -> bytes:
        asked.append(length)
        return data[offset : offset + length]

    assert len(elf.needed(found, read)) == elf.NEEDED_MAX
    assert sum(asked) < 128 << 10


@given(st.binary(max_size=300), st.integers(0, 500))
def test_no_bytes_raise_anything(noise: bytes, at: int) -> None:
    data = bytearray(program([b"libc.so.6"], b"/lib/ld.so"))
    data[at : at + len(noise)] = noise
    found = elf.parse(bytes(data[: elf.HEAD]))
    if found is not None:
        elf.needed(found, reading(bytes(data)))
        elf.interpreter(found, reading(bytes(data)))


def test_programs_of_the_tests_are_like_those_of_a_linker() -> None:
    shown = subprocess.run(["readelf", "-lW", "/bin/sh"], capture_output=True, text=True, check=False)
    if shown.returncode:
        pytest.skip("there is no readelf")
    found = elf.parse(Path("/bin/sh").read_bytes()[: elf.HEAD])
    assert found is not None
    assert len(found.segments) == shown.stdout.count(" LOAD ")
    assert struct.calcsize("<IIQQQQ") == 40
