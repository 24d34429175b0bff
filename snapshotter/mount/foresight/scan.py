"""Who reads one file after the other, as tar, grep and cp do: told from the order in which files are begun.

A tree's inodes are numbered in the order of a walk, so that the next file has one of the next numbers, but for the steps from
one directory to another. Each reader is looked at by itself: what a container's start reads in between says nothing about a
backup that runs beside it.
"""

from __future__ import annotations

SCAN_LENGTH = 4
"""Files that were read in order before a reader is taken for a scan, for which nothing is guessed."""

SWEEP_LENGTH = 16
"""Files that were read in order before a reader is taken to go on so. Starting Python with NumPy reads 5 at most."""

SCAN_STEP = 16
"""Inode numbers from a file to the next one of a scan at most: what lies between are directories and links."""

READERS = 16
"""Readers of one mount that are told apart; the one that came first is forgotten."""

_SCORE_MAX = 64  # halved by every step elsewhere: five of them, and it is a scan no more


class Order:
    """The order in which one reader begins files."""

    __slots__ = ("_last", "_length", "score")

    def __init__(self) -> None:
        self._last = 1 << 64  # no file has it
        self._length = 0
        self.score = 0
        """How many files were begun in order; halved by each that was not."""

    def begun(self, ino: int) -> bool:
        """File `ino` is read from its beginning; whether the next one is going to be read, as far as the last few show."""
        in_order = 0 < ino - self._last <= SCAN_STEP
        self._length = self._length + 1 if in_order else 0
        self.score = min(self.score + 1, _SCORE_MAX) if in_order else self.score // 2
        self._last = ino
        return self._length >= SCAN_LENGTH


class Readers:
    """The readers of one mount, by the thread that the kernel names. For one thread, but for `score`, which any may ask."""

    def __init__(self) -> None:
        self._orders: dict[int, Order] = {}
        self._next: int | None = None

    def begun(self, reader: int, ino: int) -> None:
        """`reader` reads file `ino` from its beginning."""
        order = self._orders.get(reader)
        if order is None:
            if len(self._orders) >= READERS:
                del self._orders[next(iter(self._orders))]
            order = self._orders[reader] = Order()
        self._next = ino if order.begun(ino) else None

    def score(self, reader: int) -> int:
        """How many files `reader` has begun in order, some steps from one directory to the next included (`Order.score`)."""
        order = self._orders.get(reader)
        return 0 if order is None else order.score

    def take(self) -> int | None:
        """The file after which the next one is going to be read, told once; None where nothing is foreseen."""
        ino, self._next = self._next, None
        return ino
