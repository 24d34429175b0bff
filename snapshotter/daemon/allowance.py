"""How much may be given away in a time: a token bucket."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Allowance:
    """`rate` bytes a second, of which those of one second may be saved up. Safe to use from any thread."""

    def __init__(self, rate: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._lock = threading.Lock()
        self._left = float(rate)
        self._at = clock()

    def take(self, size: int) -> bool:
        """Whether `size` bytes may be given away now, which they then are.

        The last ones may exceed what is left, and are paid back by what comes after: else a rate below a chunk's size would
        give nothing away for ever.
        """
        with self._lock:
            now = self._clock()
            self._left = min(float(self._rate), self._left + (now - self._at) * self._rate)
            self._at = now
            if self._left <= 0:
                return False
            self._left -= size
            return True
