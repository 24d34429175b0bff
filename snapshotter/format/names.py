"""Which names lead to which inodes, of a whole rootfs, in little memory: 24 bytes a directory where numbers follow a walk.

A builder that numbers as it walks gives all entries of a directory successive numbers, but for the further names of hard links.
So a directory's names are kept as runs: first and last number, and whose they are.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from operator import lt


class Names:
    """The entries of all directories, without the names themselves."""

    def __init__(self) -> None:
        """None at first."""
        self._firsts = array("Q")
        self._lasts = array("Q")
        self._owners = array("Q")
        self._several: dict[int, int] = {}

    def add(self, directory: int, numbers: Sequence[int]) -> None:
        """The entries of `directory` lead to the inodes `numbers`."""
        for first, last in _runs(numbers):
            self._firsts.append(first)
            self._lasts.append(last)
            self._owners.append(directory)

    def several(self) -> Mapping[int, int]:
        """How many names an inode has, of those that have more than one. To be asked for when all directories are there."""
        self._sort()
        found = self._several = {}
        end = -1
        for first, last in zip(self._firsts, self._lasts, strict=True):
            # A run that begins as late as this one covers all up to the last end: each of these has a name already.
            for number in range(first, min(end, last) + 1):
                found[number] = found.get(number, 1) + 1
            end = max(end, last)
        return found

    def counts(self, numbers: Iterable[int]) -> Mapping[int, int]:
        """How many entries of a directory lead to one of the inodes `numbers`, where there are any."""
        wanted = array("Q", sorted(set(numbers)))
        found: dict[int, int] = {}
        for first, last, owner in zip(self._firsts, self._lasts, self._owners, strict=True):
            count = bisect_right(wanted, last) - bisect_left(wanted, first)
            if count:
                found[owner] = found.get(owner, 0) + count
        return found

    def owner(self, number: int) -> int | None:
        """The directory that names inode `number`, the one with the lowest number where several do; None if none does. After
        `several`."""
        row = bisect_right(self._firsts, number)
        # Runs overlap where there are hard links alone: who has several names may be in any that begins before.
        found = [self._owners[each] for each in range(row) if self._lasts[each] >= number] if number in self._several else []
        while row and not found:
            row -= 1
            if self._lasts[row] >= number:
                found.append(self._owners[row])
        return min(found, default=None)

    def _sort(self) -> None:
        firsts = self._firsts
        if not all(map(lt, firsts, islice(firsts, 1, None))):
            rows = sorted(range(len(firsts)), key=firsts.__getitem__)
            for column in (self._lasts, self._owners, self._firsts):
                column[:] = array("Q", [column[row] for row in rows])


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The runs of successive numbers, as they follow one another."""
    if not numbers:
        return
    first, last = numbers[0], numbers[-1]
    if last - first == len(numbers) - 1 and all(map(lt, numbers, islice(numbers, 1, None))):
        yield first, last
        return
    last = first
    for number in islice(numbers, 1, None):
        if number != last + 1:
            yield first, last
            first = number
        last = number
    yield first, last
