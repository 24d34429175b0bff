"""Cutting file data into chunks.

FastCDC decides each cut from the bytes since the last one, at most `Cutting.maximum` of them, so a stream can be cut
through a window. The cut points are part of every stored image: the same data cut elsewhere is new data to every registry
and cache, so known answers are pinned in the tests.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import starmap
from operator import itemgetter
from typing import Literal, NamedTuple, Protocol, cast

from snapshotter.errors import InvalidError
from snapshotter.format.digest import Digest
from snapshotter.format.model import CHUNK_MAX, FileChunk

KIB = 1024

WINDOW = 4 << 20
"""Bytes that are held while a stream is cut."""

READ = 5 << 19
"""Bytes of a window that are filled at most before they are cut, unless two of the longest chunks are more: a window that has
room for large files' chunks takes no more memory for it where there are none."""

LARGE_FACTOR = 4
"""So many times as long are the chunks of large files (`Cutting.large`)."""


@dataclass(frozen=True, slots=True)
class Cutting:
    """How data is cut: the algorithm and its sizes in bytes.

    `algorithm` 2020 is FastCDC with the two-byte rolling step (and upstream's cut points), 2016 the original. A file of
    at least `align` bytes is cut on its own, smaller ones are run together in walk order. A run ends with the directory in
    which it has come to `group` bytes; with None it never does. With `align` None all files are one stream, as upstream
    has it. A file that is cut on its own and has at least `large` bytes is cut in chunks `LARGE_FACTOR` times as long: they
    are a quarter as many to find, open and check, where nearly all reads are long. docs/decisions/cutting.md has the figures.
    """

    algorithm: Literal["2020", "2016"] = "2020"
    minimum: int = 16 * KIB
    average: int = 64 * KIB
    maximum: int = 256 * KIB
    align: int | None = 32 * KIB
    group: int | None = 16 * KIB
    large: int | None = 128 << 20

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            InvalidError: an algorithm or sizes that the cutter cannot work with.
        """
        if self.algorithm not in ("2020", "2016"):
            raise InvalidError(f"cutting algorithm {self.algorithm!r} is not known; choose 2020 or 2016")
        if not 256 <= self.minimum <= self.average <= self.maximum <= CHUNK_MAX or self.average > 4 << 20 or self.maximum < KIB:
            raise InvalidError(
                f"chunk sizes {self.minimum}/{self.average}/{self.maximum} do not fit: 256 ≤ minimum ≤ average ≤ maximum,"
                f" average at most 4 MiB, maximum at most {CHUNK_MAX >> 20} MiB"
            )
        if self.large is not None and self.large < 1:
            raise InvalidError(f"files cannot be large from {self.large} bytes on")
        if self.align is not None and self.align < 1:
            raise InvalidError(f"files cannot be aligned from {self.align} bytes on")
        if self.group is not None and self.group < 1:
            raise InvalidError(f"files cannot be run together to {self.group} bytes")
        if self.large is not None:
            self.of_large()

    def of_large(self) -> Cutting:
        """How large files are cut.

        Raises:
            InvalidError: sizes so many times as long are sizes that the cutter cannot work with.
        """
        return replace(
            self,
            minimum=LARGE_FACTOR * self.minimum,
            average=LARGE_FACTOR * self.average,
            maximum=LARGE_FACTOR * self.maximum,
            large=None,
        )

    @property
    def longest(self) -> int:
        """Bytes of the longest chunk of any file."""
        return self.maximum if self.large is None else LARGE_FACTOR * self.maximum


UPSTREAM_CUTTING = Cutting(align=None, group=None, large=None)
"""What upstream PuzzleFS does: one stream of all files, 16/64/256 KiB."""


class ByteReader(Protocol):
    """What is cut: `readinto` fills at least one byte, or returns 0 at the end."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Read up to ``len(buffer)`` bytes into `buffer`; how many."""
        ...


class HoleReader(ByteReader, Protocol):
    """A `ByteReader` that knows where the holes of a sparse file are."""

    def hole(self) -> int:
        """How many of the next bytes are zeros of a hole."""
        ...

    def skip(self, count: int) -> None:
        """Leave out so many bytes of the hole, as if they had been read."""
        ...


class Window(Protocol):
    """Where a stream is cut: memory that its bytes are read into, and out of which its chunks are taken one after another."""

    def room(self, kept: int) -> memoryview:
        """Room for twice the longest chunk or more; its first `kept` bytes are those behind the last chunk that was taken."""
        ...


class Memory:
    """A `Window` in memory of its own."""

    def __init__(self, chunk_max: int) -> None:
        """`chunk_max`: the longest chunk in bytes."""
        self._view = memoryview(bytearray(max(WINDOW, 4 * chunk_max)))
        self._least = 2 * chunk_max
        self._used = 0

    def room(self, kept: int) -> memoryview:
        """See `Window`."""
        if len(self._view) - self._used < self._least:
            self._view[:kept] = bytes(self._view[self._used : self._used + kept])
            self._used = 0
        return self._view[self._used :]

    def take(self, length: int) -> memoryview:
        """The next `length` bytes, good until there is room again."""
        start, self._used = self._used, self._used + length
        return self._view[start : self._used]


class Cutter:
    """Cuts one stream after another. Not for several threads, nor for two streams at once."""

    def __init__(self, cutting: Cutting) -> None:
        """Cut as `cutting` says."""
        self._maximum = cutting.maximum
        self._read = max(READ, 2 * cutting.maximum)
        self._lengths = _cutter(cutting)
        self._zeros = bytes(cutting.maximum)
        # As long is every chunk that has the longest one's bytes or more before it, all of them zeros.
        self._zero_length = next(iter(self._lengths(memoryview(self._zeros))))

    def cut(self, reader: ByteReader, window: Window) -> Iterator[tuple[int, int]]:
        """The chunks of what `reader` yields, in order: the length of each, and how many times it comes one after the other.

        Its bytes are the next ones in `window`, once, and are to be taken at once. More than once come only the zeros of a
        `HoleReader`'s hole. The reader is read to its end only if all chunks are taken.
        """
        space = window.room(0)[: self._read]
        filled = 0
        ended = False
        # Asking isinstance of a protocol takes 10 µs, as long as all else that a small file takes here.
        holes = cast("HoleReader", reader) if hasattr(reader, "hole") else None
        while not ended or filled:
            if not ended and holes is not None:
                times = self._pass_over(holes, space[:filled])
                if times:
                    space[: self._zero_length] = self._zeros[: self._zero_length]
                    yield self._zero_length, times
                    filled = 0
                    space = window.room(0)[: self._read]
            while not ended and filled < len(space):
                count = reader.readinto(space[filled:])
                ended = count == 0
                filled += count
            start = 0
            for length in self._lengths(space[:filled]):
                # The last cuts of a window would change if more bytes followed.
                if not ended and filled - start < self._maximum:
                    break
                start += length
                yield length, 1
            filled -= start
            if not ended or filled:
                space = window.room(filled)[: self._read]

    def _pass_over(self, reader: HoleReader, waiting: memoryview) -> int:
        """Leave out what of a hole can be cut unseen, together with the bytes that wait for a cut; how many chunks that is."""
        zeros = len(waiting) + reader.hole()
        if zeros < self._maximum or len(waiting) > self._maximum or waiting != self._zeros[: len(waiting)]:
            return 0
        times = (zeros - self._maximum) // self._zero_length + 1
        passed = times * self._zero_length - len(waiting)
        if passed < 0:
            return 0
        reader.skip(passed)
        return times


def _cutter(cutting: Cutting) -> Callable[[memoryview], Iterable[int]]:
    """What gives the lengths of a buffer's chunks.

    The libraries are imported here: pyfastcdc takes 50 ms to make its tables, in which the encoders' processes can start.
    """
    if cutting.algorithm == "2016":
        import fastcdc

        return lambda view: (
            chunk.length for chunk in fastcdc.fastcdc(view, cutting.minimum, cutting.average, cutting.maximum, fat=False)
        )
    import pyfastcdc

    # Level 1 normalization is what upstream's crate does. The object keeps state and must not be shared.
    cutter = pyfastcdc.FastCDC(cutting.average, min_size=cutting.minimum, max_size=cutting.maximum, normalized_chunking=1)
    return lambda view: (chunk.length for chunk in cutter.cut_buf(view))


class CutChunk(NamedTuple):
    """A chunk that was cut: its name, raw length, and whether the name is that of compressed bytes (upstream's images)."""

    digest: Digest
    length: int
    compressed: bool = False


class ChunkList(Sequence[FileChunk]):
    """A file's chunks in 41 bytes each, where objects take 200: they are kept until all of a layer is known."""

    __slots__ = ("packed",)

    def __init__(self, chunks: Iterable[FileChunk]) -> None:
        """With these `chunks`, whose offsets and lengths fit a chunk's (`CHUNK_MAX`)."""
        self.packed = b"".join([_PACK(chunk.digest, chunk.offset, chunk.length, chunk.compressed) for chunk in chunks])

    @classmethod
    def unpack(cls, packed: bytes) -> ChunkList:
        """The list whose `packed` bytes these are: whoever keeps many keeps these."""
        found = cls.__new__(cls)
        found.packed = packed
        return found

    def __len__(self) -> int:
        return len(self.packed) // _REFERENCE.size

    def __getitem__(self, row: int) -> FileChunk:  # type: ignore[override]  # slices are never taken
        if not 0 <= row < len(self):
            raise IndexError(row)
        return FileChunk(*_REFERENCE.unpack_from(self.packed, row * _REFERENCE.size))

    def __iter__(self) -> Iterator[FileChunk]:
        return starmap(FileChunk, _REFERENCE.iter_unpack(self.packed))

    def digests(self) -> Iterator[Digest]:
        """The chunks' names, in a fraction of the time that the chunks take."""
        return map(itemgetter(0), _REFERENCE.iter_unpack(self.packed))

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as of other sequences that are compared by what they hold


_REFERENCE = struct.Struct("<32sII?")
_PACK = _REFERENCE.pack


def _whole(size: int, chunks: Sequence[CutChunk]) -> ChunkList:
    """The chunk list of a file that was cut alone, as most chunks are."""
    if sum([chunk.length for chunk in chunks]) != size:
        raise ValueError("the chunks end before the file does, or it before them")
    return ChunkList.unpack(b"".join([_PACK(digest, 0, length, compressed) for digest, length, compressed in chunks]))


def assign(sizes: Sequence[int], chunks: Sequence[CutChunk]) -> list[ChunkList]:
    """The chunk lists of files of `sizes` bytes that were run together and cut into `chunks`.

    Each result lists the chunks that hold bytes of that file.

    Raises:
        ValueError: the sizes' sum is not the chunks'.
    """
    if len(sizes) == 1:
        return [_whole(sizes[0], chunks)]
    found: list[ChunkList] = []
    rest = iter(chunks)
    chunk = next(rest, None)
    used = 0
    for size in sizes:
        parts: list[FileChunk] = []
        missing = size
        while missing:
            if chunk is None:
                raise ValueError("the chunks end before the files do")
            taken = min(missing, chunk.length - used)
            parts.append(FileChunk(chunk.digest, used, taken, chunk.compressed))
            missing -= taken
            used += taken
            if used == chunk.length:
                chunk, used = next(rest, None), 0
        found.append(ChunkList(parts))
    if chunk is not None:
        raise ValueError("the files end before the chunks do")
    return found
