"""A pack as the chunk store sees it: its index, loaded when first needed, and its chunks in the order of their places."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator

from snapshotter.errors import PuzzlefsError
from snapshotter.format.digest import Digest
from snapshotter.format.pack import PackEntry, PackIndex

ORDERED_MAX = 1 << 18
"""Most chunks of a pack that are put in order (about 100 bytes each meanwhile). A pack of 256 MiB has some ten thousand;
what has more is read all the same, without reading ahead."""


class PackMap:
    """One pack; shared by all stores that read it. `load` makes the index (see `indexes.IndexStore.open`)."""

    def __init__(self, digest: Digest, load: Callable[[], PackIndex]) -> None:
        self.digest = digest
        self._load = load
        self._lock = threading.Lock()
        self._index: PackIndex | None = None
        self._attempts = 0
        self._failure: PuzzlefsError | None = None
        self._order: tuple[array[int], bytes] | None = None

    def index(self) -> PackIndex:
        """The pack's index; read once, and by one thread at a time.

        Raises:
            What `load` raises: NotFoundError, CorruptError, UnavailableError. The next call tries again.
        """
        attempt = self._attempts
        with self._lock:
            if self._index is not None:
                return self._index
            if self._failure is not None and self._attempts != attempt:
                raise self._failure  # of the attempt that this caller has waited for; a queue of attempts could take minutes
            try:
                self._index = self._load()
            except PuzzlefsError as error:
                self._failure = error
                raise
            finally:
                self._attempts += 1
            return self._index

    @property
    def known(self) -> PackIndex | None:
        """The pack's index if it has been read."""
        return self._index

    def between(self, start: int, end: int) -> Iterator[PackEntry]:
        """The chunks that begin in the bytes `start` to `end` of the pack, in the order of their places."""
        index = self.index()
        with self._lock:
            if self._order is None:
                self._order = _order(index)
            offsets, digests = self._order
        for row in range(bisect_left(offsets, start), len(offsets)):
            if offsets[row] >= end:
                return
            entry = index.find(Digest(digests[32 * row : 32 * row + 32]))
            if entry is not None:
                yield entry


def _order(index: PackIndex) -> tuple[array[int], bytes]:
    """Offsets in their order, and the digests of the chunks there, 32 bytes each: 40 bytes a chunk."""
    if len(index) > ORDERED_MAX:
        return array("Q"), b""
    offsets = array("Q")
    digests = bytearray()
    for entry in index:
        offsets.append(entry.offset)
        digests += entry.digest
    rows = sorted(range(len(offsets)), key=offsets.__getitem__)
    return array("Q", (offsets[row] for row in rows)), b"".join(digests[32 * row : 32 * row + 32] for row in rows)
