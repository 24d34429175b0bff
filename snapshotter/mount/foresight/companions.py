"""What is going to be read with what is read: decided from names, sizes and ELF headers, before anybody asks for it.

Rules that cost few bytes in vain and save half of a start's requests (docs/decisions/read-ahead.md):

* Whoever reads a small file reads all of it.
* Whoever reads a small file is going to read the others of its directory, if they are few bytes (`neighbours`); but of Python's
  modules those that it imports (`modules`).
* Whoever reads the head of an ELF file is about to map it: the dynamic loader reads what lies before the code (symbols,
  strings, relocations) and writes to what lies behind it (relocated data), of the file and of its libraries (`loading`).
* Whoever misses something in a part of a program misses more around it, the sooner the more often (`around`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from snapshotter.chunkstore.base import ChunkRef
from snapshotter.format.digest import Digest
from snapshotter.mount.foresight.elf import Program, Segment
from snapshotter.mount.foresight.places import Places
from snapshotter.mount.tree import Piece, Tree

SMALL_FILE = 512 << 10
"""Bytes up to which a file counts as small."""

SEGMENTS_MAX = 4 << 20
"""Bytes of an ELF file's segments that are expected, from the first one on; more is no start any more, or no ELF file."""

NEIGHBOUR = 128 << 10
"""Bytes up to which a file may come with another of its directory, as modules, configuration and data of one program do. A
longer one is worth a request of its own, when somebody reads it."""

NEIGHBOURS_BYTES = 1 << 20
"""Bytes of a directory's files that are no longer than that, up to which all of them are fetched when one is."""

AROUND_FIRST = 64 << 10
"""Bytes that are fetched behind the first miss in a segment."""

AROUND_DOUBLED = 3
"""How often that is doubled. The next miss takes all of the segment, if it has `SEGMENTS_MAX` bytes at most: of the code of
libcrypto a start runs 25 of 32 chunks, all over it."""

_ALONE = (b".pyc", b".so")
"""Endings of files that others do not come with for standing beside them: what they need stands in them."""


def whole_file(tree: Tree, ino: int, longest: int = SMALL_FILE) -> list[Piece]:
    """The pieces of file `ino` if it has `longest` bytes at most, else none.

    Raises:
        CorruptError, NotFoundError: as `Tree.plan`.
    """
    pieces = tree.plan(ino, 0, longest + 1)
    return pieces if sum(piece.length for piece in pieces) <= longest else []


def of_small_file(tree: Tree, places: Places, ino: int, has: Callable[[Digest], bool]) -> list[ChunkRef]:
    """What to fetch when some of file `ino` is, if it is small: all of it, then its `neighbours`.

    Raises:
        CorruptError, NotFoundError: a file breaks a rule of the format.
    """
    whole = chunks(whole_file(tree, ino))
    return [*whole, *neighbours(tree, places, ino, has)] if whole else []


def mapped(program: Program) -> list[tuple[int, int]]:
    """Offset and length of what the dynamic loader touches of `program`: the segments that are written to, and the first one if
    it is no code, which holds what relocating takes."""
    wanted: list[tuple[int, int]] = []
    total = 0
    for segment in program.segments:
        if segment.written or (segment.offset == 0 and not segment.executable):
            total += segment.length
            if total > SEGMENTS_MAX:
                break
            wanted.append((segment.offset, segment.length))
    return wanted


def part(program: Program, offset: int, length: int) -> int | None:
    """Which of the segments of `program` the bytes from `offset` on are in; None where they are in none."""
    for number, segment in enumerate(program.segments):
        if segment.offset < offset + length and offset < segment.offset + segment.length:
            return number
    return None


def around(segment: Segment, offset: int, length: int, misses: int, risk: int = 0) -> tuple[int, int]:
    """Offset and length of what to fetch of `segment` where `length` bytes at `offset` are missed, as others were `misses`
    times before: some of what lies before them, and twice as much of what lies behind. That is `AROUND_FIRST` at first, or
    `risk` if more than that may be fetched in vain, and is doubled each time, up to `AROUND_DOUBLED` times."""
    if misses >= AROUND_DOUBLED and segment.length <= SEGMENTS_MAX:
        return segment.offset, segment.length
    behind = max(AROUND_FIRST, risk) << min(misses, AROUND_DOUBLED)
    start = max(segment.offset, offset - behind // 2)
    end = min(segment.offset + segment.length, offset + length + behind)
    return start, max(0, end - start)


def code(program: Program, longest: int) -> list[tuple[int, int]]:
    """Offset and length of the code of `program`, if it has `longest` bytes at most."""
    parts = [(segment.offset, segment.length) for segment in program.segments if segment.executable]
    return parts if sum(length for _, length in parts) <= longest else []


def constants(program: Program, longest: int) -> list[tuple[int, int]]:
    """Offset and length of the constants of `program` that lie behind its code (.rodata), if they have `longest` bytes at most.

    What tells how the stack is unwound follows them in the same segment, and is hardly ever read.
    """
    parts: list[tuple[int, int]] = []
    for segment in program.segments:
        if segment.offset and not segment.executable and not segment.written:
            end = segment.offset + segment.length
            if program.unwinding is not None and segment.offset <= program.unwinding < end:
                end = program.unwinding
            parts.append((segment.offset, end - segment.offset))
    return parts if sum(length for _, length in parts) <= longest else []


def neighbours(tree: Tree, places: Places, ino: int, has: Callable[[Digest], bool]) -> list[ChunkRef]:
    """The chunks of the other files of the directory of file `ino`, which has to be fetched, that may come with it; none if
    what is not on this machine of them (`has`) is more than `NEIGHBOURS_BYTES`.

    Raises:
        CorruptError, NotFoundError: a file breaks a rule of the format.
    """
    found: list[ChunkRef] = []
    left = 0
    for name, file in ((entry.name, entry.ino) for entry in places.beside(ino)):
        if file == ino and name.endswith(_ALONE):
            return []
        missing = [piece for piece in whole_file(tree, file, NEIGHBOUR) if file != ino and not has(piece.chunk.digest)]
        left += sum(piece.length for piece in missing)
        if left > NEIGHBOURS_BYTES:
            return []
        found += chunks(missing)
    return list(dict.fromkeys(found))


def chunks(pieces: Sequence[Piece]) -> list[ChunkRef]:
    """The chunks of `pieces`, each once."""
    return list(dict.fromkeys(piece.chunk for piece in pieces))
