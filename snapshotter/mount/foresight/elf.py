"""What an ELF file says about how it is loaded (elf(5), ld.so(8)): a pure reading of a hostile file's head.

Only 64-bit little-endian files are known, and only what the dynamic loader goes by: the program headers, and the names of the
libraries that a file needs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

HEAD = 4096
"""Bytes from a file's beginning that are enough for its program headers, in practice."""

NEEDED_MAX = 64
"""Libraries of one file that are looked at."""

_HEADERS_MAX = 64
_DYNAMIC_MAX = 64 << 10
_NAME_MAX = 255
_ELF64_LITTLE = b"\x7fELF\x02\x01"
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP, _PT_GNU_EH_FRAME = 1, 2, 3, 0x6474E550
_PF_X, _PF_W = 1, 2
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5


class Segment(NamedTuple):
    """A part of the file, `length` bytes from `offset` on, that is mapped at `address`."""

    address: int
    offset: int
    length: int
    executable: bool
    written: bool


class Extent(NamedTuple):
    """`length` bytes of a file from `offset` on."""

    offset: int
    length: int


class Program(NamedTuple):
    """A program or library: what is mapped of it, where its dynamic section is, the path of its interpreter (ld.so), and from
    where on it is told how its stack is unwound (.eh_frame_hdr, which .eh_frame follows)."""

    segments: tuple[Segment, ...]
    dynamic: Extent | None
    interpreter: Extent | None
    unwinding: int | None = None


Read = Callable[[int, int], bytes]
"""Bytes of the file: offset and length; fewer where it ends."""


def parse(head: bytes | memoryview) -> Program | None:
    """What the file that begins with `head` is; None where it is nothing known here, or its headers are not in `head`."""
    if bytes(head[:6]) != _ELF64_LITTLE or len(head) < 64:
        return None
    (offset,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    if size < 56 or not 0 < count <= _HEADERS_MAX or offset + size * count > len(head):
        return None
    segments: list[Segment] = []
    dynamic = interpreter = unwinding = None
    for number in range(count):
        kind, flags, start, address, _, length = struct.unpack_from("<IIQQQQ", head, offset + size * number)
        if kind == _PT_LOAD and length:
            segments.append(Segment(address, start, length, bool(flags & _PF_X), bool(flags & _PF_W)))
        elif kind == _PT_DYNAMIC:
            dynamic = Extent(start, min(length, _DYNAMIC_MAX))
        elif kind == _PT_INTERP:
            interpreter = Extent(start, min(length, _NAME_MAX))
        elif kind == _PT_GNU_EH_FRAME:
            unwinding = start
    return Program(tuple(segments), dynamic, interpreter, unwinding)


def needed(program: Program, read: Read) -> list[bytes]:
    """The names of the libraries that the dynamic loader is going to look for (DT_NEEDED), in their order."""
    if program.dynamic is None:
        return []
    table = read(*program.dynamic)
    names: list[int] = []
    strings = None
    for at in range(0, len(table) - 15, 16):
        tag, value = struct.unpack_from("<qQ", table, at)
        if tag == _DT_NULL:
            break
        if tag == _DT_NEEDED and len(names) < NEEDED_MAX:
            names.append(value)
        elif tag == _DT_STRTAB:
            strings = _in_file(program, value)
    if strings is None:
        return []
    found = (_text(read(strings + name, _NAME_MAX + 1)) for name in names if name < 1 << 32)
    return [name for name in found if name and b"/" not in name]


def interpreter(program: Program, read: Read) -> bytes | None:
    """The path of the dynamic loader that the kernel starts instead of the program."""
    return None if program.interpreter is None else _text(read(*program.interpreter)) or None


def _in_file(program: Program, address: int) -> int | None:
    for segment in program.segments:
        if segment.address <= address < segment.address + segment.length:
            return segment.offset + address - segment.address
    return None


def _text(data: bytes) -> bytes:
    text, end, _ = data.partition(b"\0")
    return text if end else b""
