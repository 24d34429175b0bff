"""What is going to be read with what is being read: decided from the file alone, before anybody asks for it.

Two rules, which cost few bytes in vain and save a third of a start's requests (docs/decisions/read-ahead.md):

* Whoever reads a small file reads all of it.
* Whoever reads the head of an ELF file is about to map it: the dynamic loader reads what lies before the code (symbols,
  strings, relocations) and writes to what lies behind it (relocated data). Which code will run nobody knows.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from snapshotter.chunkstore.base import ChunkRef
from snapshotter.mount.tree import Piece, Tree

SMALL_FILE = 512 << 10
"""Bytes up to which a file counts as small."""

SEGMENTS_MAX = 4 << 20
"""Bytes of an ELF file's segments that are expected, from the first one on; more is no start any more, or no ELF file."""

_HEADERS_MAX = 64
_ELF64_LITTLE = b"\x7fELF\x02\x01"
_PT_LOAD = 1
_PF_X, _PF_W = 1, 2


def whole_file(tree: Tree, ino: int) -> list[Piece]:
    """The pieces of file `ino` if it is small, else none.

    Raises:
        CorruptError, NotFoundError: as `Tree.plan`.
    """
    pieces = tree.plan(ino, 0, SMALL_FILE + 1)
    return pieces if sum(piece.length for piece in pieces) <= SMALL_FILE else []


def loaded_at_start(head: bytes | memoryview) -> list[tuple[int, int]]:
    """Offset and length of what the dynamic loader touches of the ELF file that begins with `head`; empty where it is none.

    Only 64-bit little-endian files whose program headers lie in `head` are known (elf(5)); of the loaded segments, those that
    are written to, and the first one, which holds what relocating takes.
    """
    if bytes(head[:6]) != _ELF64_LITTLE or len(head) < 64:
        return []
    (offset,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    if size < 56 or not 0 < count <= _HEADERS_MAX or offset + size * count > len(head):
        return []
    wanted: list[tuple[int, int]] = []
    total = 0
    for number in range(count):
        kind, flags, start, _, _, length = struct.unpack_from("<IIQQQQ", head, offset + size * number)
        first = start == 0 and not flags & _PF_X
        if kind != _PT_LOAD or not (first or flags & _PF_W) or not length:
            continue
        total += length
        if total > SEGMENTS_MAX:
            break
        wanted.append((start, length))
    return wanted


def chunks(pieces: Sequence[Piece]) -> list[ChunkRef]:
    """The chunks of `pieces`, each once."""
    return list(dict.fromkeys(piece.chunk for piece in pieces))
