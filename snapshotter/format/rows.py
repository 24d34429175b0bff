"""The rows of one layer of a rootfs: its inodes as they are stored, in the order of their numbers."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice
from operator import lt

from snapshotter.format.codec import RootfsMessage
from snapshotter.format.model import Inode


class RowRuns:
    """Which row of a layer an inode is in, as runs of successive numbers: mostly one, and one more after every gap.

    Hard links make gaps: their later names take a number too.
    """

    def __init__(self, numbers: array[int]) -> None:
        """Of the rows' numbers. Those that do not ascend make the whole unusable."""
        self._count = len(numbers)
        self.ascending = all(map(lt, numbers, islice(numbers, 1, None)))
        if not self._count or (self.ascending and numbers[-1] - numbers[0] == self._count - 1):
            starts: Sequence[int] = range(min(self._count, 1))
        else:
            pairs = enumerate(zip(numbers, islice(numbers, 1, None), strict=False), 1)
            starts = [0, *(row for row, (one, other) in pairs if other != one + 1)]
        self._rows = array("Q", starts)
        self._numbers = array("Q", map(numbers.__getitem__, starts))

    def find(self, ino: int) -> int | None:
        """The row of inode `ino`."""
        run = bisect_right(self._numbers, ino) - 1
        if run < 0:
            return None
        row = self._rows[run] + ino - self._numbers[run]
        end = self._rows[run + 1] if run + 1 < len(self._rows) else self._count
        return row if row < end else None


class StoredInodes(Sequence[Inode]):
    """The inodes of one layer in the order of their rows, each read when it is asked for.

    What breaks a rule of the format is a `CorruptError` then.
    """

    __slots__ = ("_layer", "_message")

    def __init__(self, message: RootfsMessage, layer: int) -> None:
        """Of a message that stays open."""
        self._message = message
        self._layer = layer

    def __len__(self) -> int:
        return self._message.inode_count(self._layer)

    def __getitem__(self, row: int) -> Inode:  # type: ignore[override]  # slices are never taken
        return self._message.inode_at(self._layer, row)

    def __iter__(self) -> Iterator[Inode]:
        return map(self.__getitem__, range(len(self)))
