"""What the chunk store did, in numbers."""

from __future__ import annotations

import enum
import threading
from collections import Counter as _Counter


class Count(enum.StrEnum):
    """What is counted. Those marked *by source* carry the source's name as label, the others the empty label."""

    HITS = "hits"  # chunks answered from the cache
    MISSES = "misses"  # chunks that the cache had to ask for
    REQUESTS = "requests"  # range or blob requests; by source
    BYTES = "bytes"  # stored bytes that were received; by source
    AHEAD = "ahead"  # chunks that were kept without having been asked for; by source
    CORRUPT = "corrupt"  # chunks whose bytes were wrong; by source
    RETRIES = "retries"  # requests that were made again after a failure
    SHARED = "shared"  # chunks that came from another thread's request
    GAVE_UP = "gave_up"  # waits for another thread's request that ended without an answer
    CACHE_CORRUPT = "cache_corrupt"  # files of the cache that did not match their name, dropped
    CACHE_WRITE_FAILURES = "cache_write_failures"  # chunks that could not be written to the cache
    CACHE_READ_FAILURES = "cache_read_failures"  # files of the cache that could not be read (taken as misses)
    EVICTIONS = "evictions"  # files removed from the cache to keep its cap
    EVICTED_BYTES = "evicted_bytes"
    EVICTED_RECENT_BYTES = "evicted_recent_bytes"  # of these, what containers had read recently (`reserve`)
    SERVED = "served"  # chunks that were sent to other nodes
    SERVED_BYTES = "served_bytes"
    DECLINED = "declined"  # chunks that other nodes did not get because they had got so much


SOURCES_MAX = 64
"""Sources that are counted apart; what further ones do is counted under `OTHER`. A hostile image may name many."""

OTHER = "other"


class Stats:
    """Counters, safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: _Counter[tuple[Count, str]] = _Counter()
        self._sources: set[str] = set()

    def add(self, what: Count, amount: int = 1, source: str = "") -> None:
        """Count `amount` more of `what`."""
        if amount:
            with self._lock:
                if source not in self._sources:
                    source = source if len(self._sources) < SOURCES_MAX else OTHER
                    self._sources.add(source)
                self._counts[what, source] += amount

    def total(self, what: Count) -> int:
        """`what`, over all sources."""
        with self._lock:
            return sum(amount for (counted, _), amount in self._counts.items() if counted is what)

    def snapshot(self) -> dict[Count, dict[str, int]]:
        """All counts so far: for each `Count` the amounts by source (the empty source where there is none)."""
        with self._lock:
            items = list(self._counts.items())
        result: dict[Count, dict[str, int]] = {what: {} for what in Count}
        for (what, source), amount in items:
            result[what][source] = amount
        return result
