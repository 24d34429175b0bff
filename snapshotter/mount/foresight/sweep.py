"""Has what a reader of all files reads next brought before it comes there, in the order of a walk through the tree.

Whoever reads one small file after the other waits a round trip for each, however fast the link is. What comes next is in no
doubt once some files were read in order (`scan`): the tree says it. So a window of what lies ahead is kept under way. It grows
with what was swept, since who has read much goes on, and is bounded by bytes (`WINDOW_MAX`) and by the reader's own pace
(`HORIZON`): ahead of one that is held up itself there is little, and who reads something else meanwhile shares the link with
little.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from snapshotter.chunkstore.base import ChunkRef, Foreseeing
from snapshotter.errors import CorruptError, NotFoundError
from snapshotter.mount.foresight.places import Places
from snapshotter.mount.tree import Piece, Tree

WINDOW_FIRST = 1 << 20
"""Bytes of files ahead of the reader that are under way at first."""

WINDOW_MAX = 32 << 20
"""And at most. About a third of that is stored: a few requests (`foreseen.RANGE`), 0.4 s at 200 Mbit/s."""

GROWTH = 2
"""Bytes ahead for each that was swept."""

HORIZON = 2.0
"""Seconds that the reader takes for what is under way, at its pace up to now, at most."""

BULK = 8 << 20
"""Bytes that were swept before the whole mount is served as one that is read through."""

LOST = 64
"""Files in a row that were begun elsewhere, upon which the reader sweeps no more."""

IDLE = 5.0
"""Seconds without a file of the walk after which another reader may be followed."""

ENTRIES_MAX = 8192
"""Directory entries that one step looks at, and files that are remembered: a tree may have any number of empty files."""

DEPTH_MAX = 128
"""Directories in each other that a walk enters: hostile ones may be in themselves."""


def walk(tree: Tree, places: Places, after: int) -> Iterator[int | None]:
    """The regular files that follow file `after` when the tree is walked as it is listed, each directory where it stands; None
    for every other entry. Ends where the walk ends, or where nobody knows what follows. Never raises."""
    above: list[Iterator[int]] = []
    ino = after
    for _ in range(DEPTH_MAX):
        place = places.of(ino)
        if place is None:
            break
        above.append(_behind(tree, place.directory, ino))
        ino = place.directory
    above.reverse()
    while above:
        child = next(above[-1], None)
        if child is None:
            above.pop()
        elif tree.is_file(child):
            yield child
        else:
            if len(above) < DEPTH_MAX and tree.is_directory(child):
                above.append(_behind(tree, child, None))
            yield None


def _behind(tree: Tree, directory: int, ino: int | None) -> Iterator[int]:
    """The inodes of the entries of `directory`, those behind the one of `ino` if there is one. Never raises."""
    try:
        entries = iter([entry.ino for entry in tree.entries(directory)])
    except (CorruptError, NotFoundError):
        return iter(())
    if ino is not None:
        for found in entries:
            if found == ino:
                break
    return entries


@dataclass(frozen=True, slots=True)
class Window:
    """How far ahead of a reader to be: it has come `swept` bytes in `seconds`."""

    swept: int
    seconds: float

    @property
    def size(self) -> int:
        """Bytes of files."""
        paced = int(self.swept / self.seconds * HORIZON) if self.seconds > 0 else WINDOW_MAX
        return max(WINDOW_FIRST, min(WINDOW_MAX, GROWTH * self.swept, paced))


class Sweep:
    """The way of one `reader` through `tree`, from file `first` on.

    `at` is for the thread that takes the requests and waits for nothing; `step` for any other.
    """

    def __init__(
        self,
        tree: Tree,
        places: Places,
        store: Foreseeing,
        reader: int,
        first: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tree = tree
        self._store = store
        self._reader = reader
        self._clock = clock
        self._files = walk(tree, places, first)
        self._lock = threading.Lock()
        self._starts: dict[int, int] = {first: 0}
        """Where the files that are expected begin, in the bytes of all files of the walk; the oldest go first."""
        self._part: tuple[int, int] | None = (first, 0)
        """A file that is expected up to this byte, and not to its end yet."""
        self._planned = 0
        self._position = 0
        self._elsewhere = 0
        self._began = self._moved = clock()
        self._asked = True
        """Whether a step is due, or under way: it is when a sweep begins."""
        self._ended = False
        self._bulk = False

    @property
    def over(self) -> bool:
        """Whether the walk is at its end, or the reader has left it."""
        return self._ended or self._elsewhere >= LOST or self._clock() - self._moved > IDLE

    def at(self, reader: int, ino: int, offset: int) -> bool:
        """`reader` reads file `ino` from `offset` on; whether a `step` is due, which is told once."""
        if reader != self._reader:
            return False
        start = self._starts.get(ino)
        if start is None:
            self._elsewhere += not offset
            return False
        self._elsewhere = 0
        self._moved = self._clock()
        self._position = max(self._position, start + offset)
        if self._asked or self._ended or self._planned - self._position >= self._window() // 2:
            return False
        self._asked = True
        return True

    def step(self) -> None:
        """Have more brought, up to the window's end. Waits for nothing and never raises."""
        with self._lock:
            try:
                if not self._bulk and self._position >= BULK:
                    self._bulk = True
                    self._store.bulk()
                self._store.expect(self._more(self._position + self._window()))
            finally:
                self._asked = False

    def _window(self) -> int:
        return Window(self._position, self._clock() - self._began).size

    def _more(self, end: int) -> list[ChunkRef]:
        """The chunks from what is planned up to `end`, which is planned from now on."""
        wanted: dict[ChunkRef, None] = {}
        looked_at = 0
        while self._planned < end and looked_at < ENTRIES_MAX:
            looked_at += 1
            if self._part is None:
                file = next(self._files, -1)
                if file == -1:
                    self._ended = True
                    break
                if file is None:
                    continue
                self._part = file, 0
                self._starts[file] = self._planned
            file, offset = self._part
            pieces = self._plan(file, offset, end - self._planned)
            length = sum(piece.length for piece in pieces)
            wanted.update(dict.fromkeys(piece.chunk for piece in pieces))
            self._planned += length
            self._part = None if self._planned < end else (file, offset + length)
        for oldest in list(itertools.islice(self._starts, max(0, len(self._starts) - ENTRIES_MAX))):
            del self._starts[oldest]
        return list(wanted)

    def _plan(self, file: int, offset: int, length: int) -> Sequence[Piece]:
        try:
            return self._tree.plan(file, offset, length)
        except (CorruptError, NotFoundError):  # whoever reads the file is told
            return ()
