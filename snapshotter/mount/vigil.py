"""When idle processors are to be kept from sleeping for the sake of a mount: a rule on times alone, no I/O.

While a tree is read for the first time, requests follow one another for a while, and each of them wakes a processor twice.
Where none sleeps, that is several times as quick (docs/decisions/staying-awake.md), but it is all of the machine's processors
that do not. So it is asked for only in the middle of such a burst, dropped when that ends, and rationed.

All times are nanoseconds of one clock that does not go back.
"""

from __future__ import annotations

BURST = 64
"""Lively requests with which a burst begins: some 2 ms of it."""
LINGER_NS = 2_000_000
"""Time without a lively request after which a burst is over."""
RATION_NS = 1_500_000_000
"""Longest time that sleep is kept off at once."""
REFILL = 60
"""Times as long as it was kept off before the whole ration is there again. So it is kept off for two seconds of any 30 at most:
the ration, and what 30 s add to it."""
WORTH_NS = 50_000_000
"""What must be there of the ration for another burst."""


class Vigil:
    """Says after every request whether sleep is to be kept off now."""

    def __init__(self) -> None:
        self._count = 0
        self._last = 0
        self._until = 0  # 0: it is not kept off
        self._left = RATION_NS
        self._counted = 0

    def step(self, now: int, *, lively: bool) -> bool:
        """It is `now`, and a request was answered without waiting right after another one (`lively`), or was not.

        To be called after every request, and every few milliseconds for as long as the answer is True.
        """
        if lively:
            self._count += 1
            self._last = now
        elif now - self._last > LINGER_NS:
            self._count = 0
        if self._until:
            if self._count and now < self._until:
                return True
            self._left = max(0, self._until - now)
            self._until = self._count = 0
            self._counted = now
        elif self._count >= BURST:
            self._left = min(RATION_NS, self._left + (now - self._counted) // REFILL)
            self._counted = now
            self._count = 1
            if self._left >= WORTH_NS:
                self._until = now + self._left
        return self._until > 0
