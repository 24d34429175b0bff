"""Which sources have failed lately, so that one that is gone costs its time-out once and not with every chunk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from snapshotter.chunkstore.base import ChunkStore

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
"""Seconds for which a source that failed is asked after all others: doubling with each failure in a row."""


class Health:
    """Knows sources by their names; shared by all chains of a process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._ailing: dict[str, tuple[float, float]] = {}
        """By name, until when it is asked last, and the pause that ends then."""
        self._probed: set[str] = set()
        """Those of them whose pause has ended: somebody is asking them now."""

    def order(self, sources: Sequence[ChunkStore]) -> Sequence[ChunkStore]:
        """`sources` in the order in which to ask them: as they are, but those that failed lately last.

        Of many threads one gets a source whose pause has ended in its old place, and so finds out whether it is back.
        """
        now = self._clock()
        well: list[ChunkStore] = []
        ailing: list[ChunkStore] = []
        with self._lock:
            if not self._ailing:
                return sources
            for source in sources:
                until, pause = self._ailing.get(source.name, (now, 0.0))
                if now < until:
                    ailing.append(source)
                    continue
                if pause:
                    self._ailing[source.name] = now + pause, pause
                    self._probed.add(source.name)
                well.append(source)
        return [*well, *ailing]

    def best(self, sources: Sequence[ChunkStore]) -> int:
        """Which of `sources` (at least one) `order` would put first, for what may fail: nobody is sent to find out anything."""
        now = self._clock()
        with self._lock:
            well = (number for number, each in enumerate(sources) if self._ailing.get(each.name, (now, 0.0))[0] <= now)
            return next(well, 0)

    def failed(self, source: ChunkStore) -> None:
        """`source` did not answer what another one had, or did not answer at all."""
        now = self._clock()
        with self._lock:
            until, pause = self._ailing.get(source.name, (now, 0.0))
            # what several threads notice at the same time is one failure
            if now >= until or source.name in self._probed:
                pause = min(LONGEST_PAUSE, pause * 2 or FIRST_PAUSE)
                self._ailing[source.name] = now + pause, pause
                self._probed.discard(source.name)

    def answered(self, source: ChunkStore) -> None:
        """`source` is well."""
        with self._lock:
            self._ailing.pop(source.name, None)
            self._probed.discard(source.name)
