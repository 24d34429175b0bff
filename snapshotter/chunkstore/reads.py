"""Reads under way: how many, since when, for what; and how long those that are done have taken.

`Observed` is the member of the chain that notes them; it stands where a read comes in (kind ``read``) and again where one
goes on to fetch (kind ``fetch``). What it costs is two clock readings and a dictionary entry, about 2 µs.
"""

from __future__ import annotations

import itertools
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from snapshotter.chunkstore.base import AtHand, ChunkRef, ChunkStore
from snapshotter.format.digest import Digest, to_text

HUNG_AFTER = 5.0
"""Seconds after which a read that still waits is counted as hung."""

BUCKETS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the latency histograms, in seconds; what took longer is counted beyond the last."""

KINDS = ("read", "fetch")
_LISTED_MAX = 32
"""Waiting reads that `Reads.report` names, the oldest first: a report has a bounded size."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    since: float
    layer: str
    chunk: Digest


class Reads:
    """The reads of one process; safe to use from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._waiting: dict[str, dict[int, _Waiting]] = {kind: {} for kind in KINDS}
        self._counts: dict[str, list[int]] = {kind: [0] * (len(BUCKETS) + 1) for kind in KINDS}
        self._seconds = dict.fromkeys(KINDS, 0.0)
        self._failed = dict.fromkeys(KINDS, 0)

    def begin(self, kind: str, layer: str, chunk: Digest) -> int:
        """A read of `layer` that starts with `chunk` begins; its number, for `end`."""
        number = next(self._numbers)
        self._waiting[kind][number] = _Waiting(self._clock(), layer, chunk)
        return number

    def end(self, kind: str, number: int, *, failed: bool) -> None:
        """The read is done."""
        took = self._clock() - self._waiting[kind].pop(number).since
        with self._lock:
            self._counts[kind][bisect_left(BUCKETS, took)] += 1
            self._seconds[kind] += took
            self._failed[kind] += failed

    def drop(self, kind: str, number: int) -> None:
        """The read is tried in another way, which is noted by itself."""
        del self._waiting[kind][number]

    def took(self, kind: str, seconds: float) -> None:
        """A read that did not wait was done in `seconds`."""
        with self._lock:
            self._counts[kind][bisect_left(BUCKETS, seconds)] += 1
            self._seconds[kind] += seconds

    @property
    def fetches(self) -> int:
        """Reads that have waited for a fetch and are done."""
        return sum(self._counts["fetch"])

    @property
    def busy(self) -> bool:
        """Whether anybody waits for a fetch now."""
        return bool(self._waiting["fetch"])

    def report(self) -> dict[str, Any]:
        """Everything as JSON values: by kind ``in_flight``, ``hung``, ``failed``, ``seconds`` (all that ended, together) and
        ``counts`` (by bucket, not cumulative); and ``waiting``, the oldest reads that wait for a fetch, with their layer,
        first chunk and seconds.
        """
        now = self._clock()
        result: dict[str, Any] = {}
        for kind in KINDS:
            waiting = list(self._waiting[kind].values())
            with self._lock:
                result[kind] = {
                    "in_flight": len(waiting),
                    "hung": sum(now - each.since > HUNG_AFTER for each in waiting),
                    "failed": self._failed[kind],
                    "seconds": self._seconds[kind],
                    "counts": list(self._counts[kind]),
                }
        oldest = sorted(self._waiting["fetch"].copy().values(), key=lambda each: each.since)[:_LISTED_MAX]
        result["waiting"] = [
            {"layer": each.layer, "chunk": to_text(each.chunk), "seconds": round(now - each.since, 3)} for each in oldest
        ]
        return result


class Observed:
    """Notes every `get` of `inner` in `reads`, as one of `kind` for `layer` (a diff ID, for messages)."""

    def __init__(self, inner: ChunkStore, reads: Reads, kind: str, layer: str) -> None:
        self._inner = inner
        self._reads = reads
        self._kind = kind
        self._layer = layer
        self._near: AtHand | None = inner if isinstance(inner, AtHand) else None

    @property
    def name(self) -> str:
        return self._inner.name

    def at_hand(self, wanted: Sequence[ChunkRef]) -> list[bytes] | None:
        """See `AtHand`."""
        if self._near is None:
            return None
        start = time.monotonic()
        answer = self._near.at_hand(wanted)
        if answer is not None:
            self._reads.took(self._kind, time.monotonic() - start)
        return answer

    def part(self, ref: ChunkRef, offset: int, length: int) -> bytes | None:
        """See `AtHand`."""
        if self._near is None:
            return None
        start = time.monotonic()
        answer = self._near.part(ref, offset, length)
        if answer is not None:
            self._reads.took(self._kind, time.monotonic() - start)
        return answer

    def local(self, wanted: Sequence[ChunkRef]) -> list[bytes] | None:
        """See `AtHand`."""
        if self._near is None or not wanted:
            return None
        number = self._reads.begin(self._kind, self._layer, wanted[0].digest)
        answer = None
        try:
            answer = self._near.local(wanted)
            return answer
        finally:
            if answer is None:
                self._reads.drop(self._kind, number)  # a `get` follows
            else:
                self._reads.end(self._kind, number, failed=False)

    def get(self, wanted: Sequence[ChunkRef]) -> list[bytes]:
        if not wanted:
            return []
        number = self._reads.begin(self._kind, self._layer, wanted[0].digest)
        failed = True
        try:
            answer = self._inner.get(wanted)
            failed = False
            return answer
        finally:
            self._reads.end(self._kind, number, failed=failed)

    def has(self, digest: Digest) -> bool:
        return self._inner.has(digest)

    def close(self) -> None:
        self._inner.close()
