"""Which chunks go when the cache is over its cap, and which stay for the containers that read them: a decision, no I/O.

A chunk's last *use* is when it was written or read, its last *read* when a container wanted it (`directory` keeps both as the
file's times). What comes with a pull, ahead of a reader or in the background is used, but not read.

* What was read within `RECENTLY` is *reserved*, the last read first, as far as it fits into the reserve: a share of the cap.
* What is not reserved goes first, used longest ago first; so does what was read recently and no longer fits.
* The reserved goes when nothing else is left, read longest ago first.
* As much goes as brings the cache down to `Cap.goal`, so that passes are rare.

So a pull, however large, takes from running containers only what exceeds the reserve. Two things are not known here: reads that
the kernel answers from its page cache, so what a container has in memory all the time counts as read when it first was; and
whether who has read something still runs, so that it takes a day to be forgotten.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

RECENTLY = 86400.0
"""Seconds after a read for which a chunk may be reserved: what runs once a day finds its files. The share is what bounds it."""

RESERVE = 0.25
"""Part of the cap that is kept for what containers read, unless the configuration says another."""

BATCH = 4096
"""Files of either kind that one census remembers (512 MiB of average chunks in all); for more, another one is taken."""


@dataclass(frozen=True, slots=True)
class Cap:
    """`max_bytes` on disk, of which the part `reserve` (0 to 1) is kept for what containers have read recently. An eviction
    goes down to the part `low_water` of the cap."""

    max_bytes: int
    reserve: float = RESERVE
    low_water: float = 0.9

    @property
    def reserved_bytes(self) -> int:
        """The most that is reserved."""
        return int(self.max_bytes * self.reserve)

    @property
    def goal(self) -> int:
        """Bytes in use after an eviction, at most."""
        return int(self.max_bytes * self.low_water)


class CachedFile(NamedTuple):
    """A chunk on disk: its path, the bytes that it takes, and when (seconds since 1970) it was used and read last; one that no
    container has read was read at 0."""

    path: str
    size: int
    used: float
    read: float


def is_recent(read: float, now: float) -> bool:
    """Whether what a container read at `read` may be reserved."""
    return now - read < RECENTLY


class Census:
    """The files of the cache as far as the decision needs them: the oldest of each kind, so memory does not grow with it."""

    def __init__(self, cap: Cap, now: float, batch: int = BATCH) -> None:
        """`now`: seconds since 1970. `batch`: how many of each kind are remembered, and how many victims there are at most."""
        self._cap = cap
        self._now = now
        self._batch = batch
        self._recent = _Oldest(batch)
        self._others = _Oldest(batch)

    @property
    def used(self) -> int:
        """Bytes of all files."""
        return self._recent.bytes + self._others.bytes

    def add(self, file: CachedFile) -> None:
        """Take a file into account."""
        if is_recent(file.read, self._now):
            self._recent.add(file.read, file)
        else:
            self._others.add(file.used, file)

    def victims(self) -> Iterator[CachedFile]:
        """The files to evict to come down to the goal, in this order. Where they do not suffice, because there were more files
        than a census remembers, another one must be taken."""
        excess = self.used - self._cap.goal
        for file in self._order():
            if excess <= 0:
                return
            excess -= file.size
            yield file

    def _order(self) -> list[CachedFile]:
        """As many files as can be told, in the order in which they would go."""
        recent, others = self._recent.sorted(), self._others.sorted()
        over = self._recent.bytes - self._cap.reserved_bytes
        beyond = 0  # how many of the recent ones do not fit
        while over > 0 and beyond < len(recent):
            over -= recent[beyond][1].size
            beyond += 1
        free = list(heapq.merge(others, recent[:beyond]))[: self._batch]
        # Where more were left out, or are over, the reserved must wait for the next census.
        complete = not self._others.left_out and over <= 0 and len(free) == len(others) + beyond
        reserved = recent[beyond:] if complete else []
        return [file for _, file in (*free, *reserved)][: self._batch]


class _Oldest:
    """Files by a time: the bytes of all, and the `limit` oldest."""

    def __init__(self, limit: int) -> None:
        self.bytes = 0
        self.left_out = False
        self._limit = limit
        self._heap: list[tuple[float, CachedFile]] = []  # the youngest first, by its negative time

    def add(self, when: float, file: CachedFile) -> None:
        self.bytes += file.size
        if len(self._heap) < self._limit:
            heapq.heappush(self._heap, (-when, file))
        else:
            heapq.heappushpop(self._heap, (-when, file))
            self.left_out = True

    def sorted(self) -> list[tuple[float, CachedFile]]:
        """The oldest first."""
        return sorted((-negative, file) for negative, file in self._heap)
