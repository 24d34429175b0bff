"""Where a file is: its directory and its name there, found from its number without a walk through the tree for each.

A builder numbers what is in a directory one after another (docs/format.md), so that the directory of a number is the one whose
first number is the nearest before. A tree that is numbered otherwise has fewer places that are known; nothing depends on them
but what is fetched sooner.
"""

from __future__ import annotations

import contextlib
import threading
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from snapshotter.errors import CorruptError, NotFoundError
from snapshotter.format.model import DirEntry
from snapshotter.mount.tree import Tree

_NEAR = 4
"""Directories that are looked at: a hard link's name may have another number than those beside it."""


class Place(NamedTuple):
    """A name in a directory."""

    directory: int
    name: bytes


class Places:
    """The places of one tree's inodes. Safe to use from several threads; keeps 16 bytes for each directory, which are made when
    a place is first asked for."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._lock = threading.Lock()
        self._known: tuple[array[int], array[int]] | None = None

    def of(self, ino: int) -> Place | None:
        """Where inode `ino` is, by one of its names; None where that cannot be told. Never raises."""
        firsts, directories = self._blocks()
        nearest = bisect_right(firsts, ino)
        with contextlib.suppress(CorruptError, NotFoundError):
            for at in range(nearest - 1, max(-1, nearest - 1 - _NEAR), -1):
                for entry in self._tree.entries(directories[at]):
                    if entry.ino == ino:
                        return Place(directories[at], entry.name)
        return None

    def beside(self, ino: int) -> Sequence[DirEntry]:
        """The regular files of the directory of inode `ino`, itself among them; none where that is not known. Never raises."""
        place = self.of(ino)
        with contextlib.suppress(CorruptError, NotFoundError):
            if place is not None:
                return [entry for entry in self._tree.entries(place.directory) if self._tree.is_file(entry.ino)]
        return []

    def _blocks(self) -> tuple[array[int], array[int]]:
        """The first number in each directory that is not empty, ascending, and the directories."""
        with self._lock:
            if self._known is None:
                blocks = sorted(self._tree.first_entries())
                self._known = array("Q", (first for first, _ in blocks)), array("Q", (number for _, number in blocks))
            return self._known
