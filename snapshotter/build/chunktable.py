"""What is known of the chunks of a metadata message, in little memory: 72 bytes a chunk."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator

from snapshotter.format.digest import Digest, Digests

_SIZE = 32


class ChunkTable:
    """The chunks that a message records fs-verity digests for, in its order, and the end of what its files take of each.

    Chunks are found by bisection, as readers find them: one that is out of order may not be found.
    """

    def __init__(self) -> None:
        """Empty at first."""
        self._names = bytearray()
        self._verity = bytearray()
        self._digests = Digests(self._names)
        # By whether the name is of compressed bytes.
        self._ends = (array("I"), array("I"))

    def add(self, digest: Digest, verity: bytes) -> None:
        """The next chunk, of which nothing is needed yet, and its fs-verity digest."""
        self._names += digest
        self._verity += verity
        for ends in self._ends:
            ends.append(0)

    def take(self, digest: Digest, end: int, *, compressed: bool) -> bool:
        """A file takes bytes of the chunk up to raw byte `end`. False if no such chunk is recorded."""
        row = self._row(digest)
        if row is None:
            return False
        ends = self._ends[compressed]
        if end > ends[row]:
            ends[row] = end
        return True

    def end(self, digest: Digest, *, compressed: bool) -> int:
        """The end of what files take of the chunk; 0 if none does."""
        row = self._row(digest)
        return 0 if row is None else self._ends[compressed][row]

    def verity(self, digest: Digest) -> bytes | None:
        """The recorded fs-verity digest."""
        row = self._row(digest)
        return None if row is None else bytes(self._verity[row * _SIZE : (row + 1) * _SIZE])

    def needs(self) -> Iterator[tuple[Digest, bool, int]]:
        """The chunks that files need: name, whether that is of compressed bytes, and the end of what is taken, in raw bytes."""
        for compressed, ends in enumerate(self._ends):
            for row, end in enumerate(ends):
                if end:
                    yield self._digest(row), bool(compressed), end

    def __len__(self) -> int:
        return len(self._digests)

    def __iter__(self) -> Iterator[tuple[Digest, bytes]]:
        for row in range(len(self)):
            yield self._digest(row), bytes(self._verity[row * _SIZE : (row + 1) * _SIZE])

    def _row(self, digest: Digest) -> int | None:
        row = bisect_left(self._digests, digest)
        return row if row < len(self._digests) and self._digests[row] == digest else None

    def _digest(self, row: int) -> Digest:
        return self._digests[row]
