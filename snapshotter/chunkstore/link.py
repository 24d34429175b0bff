"""What a source's requests cost: their round trip and the bytes per second, as far as requests have shown.

A request costs what the link could have carried in the time of its round trip. How far a reader's chunks may lie apart to be
fetched together, and how far ahead a first read looks, follows from that (`scaled`): 16 KiB on a fast local link, some hundred
where a round trip takes 50 ms.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace
from statistics import median

from snapshotter.chunkstore.planner import Limits

SMALL = 64 << 10
"""Bytes up to which a request's time is taken for its round trip."""

LARGE = 128 << 10
"""Bytes from which on it tells the rate."""

REMEMBERED = 16
"""Requests of each kind that are looked back upon. The shortest round trip of them counts, since the others had to share the
link, and the rate in the middle: one lucky request must not make a start fetch twice its bytes."""

SHARE = 4
"""Part of a round trip's worth of bytes that is risked to save one: what is read ahead is read in one case of three or four."""

WINDOW_MAX = 256 << 10
WINDOW_MIN = 64 << 10
"""Less is not read ahead of a first read: on a link whose round trip takes less than 10 ms at 200 Mbit/s, what comes next is
better told from the files (docs/decisions/read-ahead.md)."""


class Link:
    """The way to one source; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._round_trips: deque[float] = deque(maxlen=REMEMBERED)
        self._rates: deque[float] = deque(maxlen=REMEMBERED)

    def note(self, size: int, seconds: float) -> None:
        """A request for `size` bytes has taken `seconds`."""
        with self._lock:
            if size <= SMALL:
                self._round_trips.append(seconds)
            elif size >= LARGE and seconds > 0:
                carried = seconds - min(self._round_trips, default=0.0)
                # the round trips vary too: what is left after the shortest one says little where it is less than half
                self._rates.append(size / max(carried, seconds / 2))

    def worth(self) -> float | None:
        """Bytes that the link carries in a round trip; None as long as too little is known."""
        with self._lock:
            if len(self._round_trips) < 2 or not self._rates:
                return None
            return min(self._round_trips) * median(self._rates)


def risk(worth: float | None) -> int:
    """Bytes that may be fetched in vain to save a request, on a link that carries `worth` in a round trip; 0 where that is not
    known."""
    return 0 if worth is None else int(min(WINDOW_MAX, worth / SHARE))


def scaled(limits: Limits, worth: float | None) -> Limits:
    """`limits` for a link that carries `worth` bytes in a round trip: never less than they say, at most `WINDOW_MAX`."""
    size = risk(worth)
    first = size if size >= WINDOW_MIN else 0
    return replace(limits, gap=max(limits.gap, size), window_first=max(limits.window_first, first))
