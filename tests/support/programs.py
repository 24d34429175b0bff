"""ELF files as small as they can be: what the dynamic loader reads of them, and nothing else."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

LOAD, DYNAMIC, INTERP, EH_FRAME = 1, 2, 3, 0x6474E550
R, RX, RW = 4, 5, 6
_NEEDED, _STRTAB = 1, 5


def header(
    segments: Sequence[tuple[int, int, int, int]], *, count: int | None = None, offset: int = 64, size: int = 56
) -> bytes:
    """The header of a 64-bit ELF file, with program headers of (type, flags, file offset, file size); addresses are offsets."""
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHH", 3, 62, 1, 0, offset, 0, 0, 64, size, count or len(segments)
    )
    head = head.ljust(64, b"\0")
    for kind, flags, start, length in segments:
        head += struct.pack("<IIQQQQQQ", kind, flags, start, start, 0, length, length, 4096)
    return head


def program(needed: Sequence[bytes], interpreter: bytes = b"", code: int = 0, constants: bytes = b"") -> bytes:
    """A file that needs these libraries and has `code` bytes of code, which no other one has, and `constants`.

    Its parts: headers and strings from 0 on, code from 64 KiB on, the dynamic section behind it, then the constants.
    """
    strings = b"\0" + b"".join(name + b"\0" for name in needed)
    names = [1 + sum(len(name) + 1 for name in needed[:number]) for number in range(len(needed))]
    place = 1024
    first = 4096 + len(strings)
    behind = max(64 << 10, first) + code
    dynamic = b"".join(struct.pack("<qQ", _NEEDED, name) for name in names) + struct.pack("<qQqQ", _STRTAB, 4096, 0, 0)
    parts = [
        (LOAD, R, 0, first),
        (LOAD, RX, 64 << 10, code),
        (LOAD, RW, behind, len(dynamic)),
        (DYNAMIC, RW, behind, len(dynamic)),
    ]
    if constants:
        parts.append((LOAD, R, behind + len(dynamic), len(constants)))
    if interpreter:
        parts.append((INTERP, R, place, len(interpreter) + 1))
    body = random.Random(repr((needed, code))).randbytes(max(code, first))
    head = header(parts).ljust(place, b"\0") + interpreter + b"\0"
    return (head.ljust(4096, b"\0") + strings).ljust(64 << 10, b"\0") + body[: behind - (64 << 10)] + dynamic + constants
