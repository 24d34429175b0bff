"""A least-recently-used cache whose entries have weights, shared by the trees of one process."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class WeightedCache(Generic[K, V]):
    """Keeps what was used last, up to a total weight. Safe to use from several threads.

    The newest entry stays even if it alone weighs more than the limit: a huge directory is read in many requests, and
    decoding it anew for each would be quadratic.
    """

    def __init__(self, limit: int) -> None:
        """`limit` is the total weight of what is kept."""
        self._limit = limit
        self._total = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """The value of `key`, which counts as used now; None if it is not kept."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def put(self, key: K, value: V, weight: int) -> None:
        """Keep `value`, and drop what was not used for longest as far as the limit asks for it."""
        with self._lock:
            old = self._entries.pop(key, None)
            if old is not None:
                self._total -= old[1]
            self._entries[key] = (value, weight)
            self._total += weight
            while self._total > self._limit and len(self._entries) > 1:
                _, (_, dropped) = self._entries.popitem(last=False)
                self._total -= dropped

    def drop(self, belongs: Callable[[K], bool]) -> None:
        """Forget the entries whose keys `belongs` accepts."""
        with self._lock:
            for key in [key for key in self._entries if belongs(key)]:
                self._total -= self._entries.pop(key)[1]

    @property
    def weight(self) -> int:
        """The total weight of what is kept now."""
        return self._total
