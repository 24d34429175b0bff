"""Which of several mounts of a layer a thread is shown next."""

from __future__ import annotations

import threading
from collections import OrderedDict

TURNS_MAX = 1024
"""Threads of which it is known what they were shown last of a layer that occurs several times."""


class Turns:
    """Counts how often each thread has followed each symlink, of those that did lately. Safe for use by many threads."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._next: OrderedDict[tuple[int, int], int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._next)

    def take(self, ino: int, caller: int) -> int:
        """How often the thread `caller` has followed the symlink `ino` before; this time counts from now on."""
        with self._guard:
            turn = self._next.pop((ino, caller), 0)
            self._next[ino, caller] = turn + 1
            while len(self._next) > TURNS_MAX:
                self._next.popitem(last=False)
            return turn
