"""Digests by number, in little memory: where there are many, 42 to 50 bytes each, of which a dictionary takes 200."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence

from snapshotter.format.digest import Digest

_SIZE = 32
_PLACES = 64
_STEP = 1024 * _SIZE
_MANY = 1 << 16
"""Places up to which a table that is full gets eight times as many: every digest's place is found again each time, which
takes as long as to add it. Beyond, the memory counts."""


class DigestTable(Sequence[Digest]):
    """Digests, each once, in the order in which they came. One thread may add some while others look some up.

    A hash table with open addressing. The hash is Python's, whose key nobody outside the process knows, so that nobody can
    make digests that fall on one another.
    """

    __slots__ = ("_names", "_places")

    def __init__(self, digests: Iterable[Digest] = ()) -> None:
        """With `digests` in it at first."""
        self._names = bytearray()
        # One more than the number of the digest whose hash leads here; 0 where there is none.
        self._places = array("I", bytes(4 * _PLACES))
        self.update(digests)

    def add(self, digest: Digest) -> bool:
        """Add a digest, whose number is then that of the last one; False, and nothing is done, if it is there already."""
        names, places = self._names, self._places
        mask = len(places) - 1
        at = hash(digest) & mask
        while end := places[at] * _SIZE:
            if names.startswith(digest, end - _SIZE):
                return False
            at = at + 1 & mask
        names += digest
        count = places[at] = len(names) // _SIZE
        if 3 * count > 2 * len(places):
            self._grow()
        return True

    def update(self, digests: Iterable[Digest]) -> None:
        """Add each of `digests` that is not there."""
        names, places = self._names, self._places
        mask, count = len(places) - 1, len(self)
        for digest in digests:
            at = hash(digest) & mask
            while end := places[at] * _SIZE:
                if names.startswith(digest, end - _SIZE):
                    break
                at = at + 1 & mask
            else:
                names += digest
                count += 1
                places[at] = count
                if 3 * count > 2 * len(places):
                    self._grow()
                    places = self._places
                    mask = len(places) - 1

    def find(self, digest: Digest) -> int | None:
        """The digest's number, None if it is not there."""
        names, places = self._names, self._places
        mask = len(places) - 1
        at = hash(digest) & mask
        while end := places[at] * _SIZE:
            if names.startswith(digest, end - _SIZE):
                return end // _SIZE - 1
            at = at + 1 & mask
        return None

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, bytes) and self.find(Digest(digest)) is not None

    def __len__(self) -> int:
        return len(self._names) // _SIZE

    def __getitem__(self, number: int) -> Digest:  # type: ignore[override]  # slices are never taken
        if not 0 <= number < len(self):
            raise IndexError(number)
        return Digest(bytes(self._names[number * _SIZE : (number + 1) * _SIZE]))

    def __iter__(self) -> Iterator[Digest]:
        for start in range(0, len(self._names), _STEP):
            names = bytes(self._names[start : start + _STEP])
            yield from [Digest(names[at : at + _SIZE]) for at in range(0, len(names), _SIZE)]

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as of other sequences that are compared by what they hold

    def _grow(self) -> None:
        count = len(self._places) * (2 if len(self._places) >= _MANY else 8)
        places = array("I", bytes(4 * count))
        mask = len(places) - 1
        for number, digest in enumerate(self, 1):
            at = hash(digest) & mask
            while places[at]:
                at = at + 1 & mask
            places[at] = number
        self._places = places
