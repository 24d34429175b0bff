"""One thread at a time per key."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager


class Turns:
    """Locks by key, which exist only while somebody holds or waits for them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: dict[Hashable, tuple[threading.Lock, int]] = {}
        """By key, its lock and how many threads hold or wait for it."""

    @contextmanager
    def take(self, key: Hashable) -> Iterator[None]:
        """Run the block while no other thread runs one for the same `key`."""
        with self._lock:
            turn, count = self._taken.get(key, (threading.Lock(), 0))
            self._taken[key] = (turn, count + 1)
        try:
            with turn:
                yield
        finally:
            with self._lock:
                turn, count = self._taken.pop(key)
                if count > 1:
                    self._taken[key] = (turn, count - 1)

    def __len__(self) -> int:
        """How many keys are held or waited for."""
        with self._lock:
            return len(self._taken)
