"""Threads that want the same chunk at the same time: one fetches it, the others wait for its result.

The rules, each of which somebody's single-flight has broken:

* A leader that fails, by whatever exception, ends the wait of everybody; each of them then tries for itself, and the first to
  do so leads. So the error that a thread gets is always that of its own attempt.
* A wait has an end (`timeout`), after which the thread gives up with an error that says what it waited for.
* A leader looks into the cache before it fetches, since the leader before it may have finished between its look and now,
  and puts what it got into the cache before it ends the flight.
* A leader fetches before it waits for anybody else, so leaders of overlapping sets cannot wait for each other in a circle.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from snapshotter.chunkstore.base import ChunkRef, ChunkStore, SourceUnavailableError
from snapshotter.chunkstore.claims import Claimed, NoClaims
from snapshotter.chunkstore.local import LocalChunks
from snapshotter.chunkstore.stats import Count, Stats
from snapshotter.format.digest import Digest, to_text

TIMEOUT = 60.0
"""Seconds that a thread waits for another one's fetch: the bound of a read."""


class _Flight:
    """One chunk that a leader is fetching. `raw` stays None if the leader failed."""

    __slots__ = ("done", "raw")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.raw: bytes | None = None


class Flights:
    """What is being fetched now, shared by all chains of a process, so that two images wait for the same chunk together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flying: dict[ChunkRef, _Flight] = {}

    def board(self, refs: Sequence[ChunkRef]) -> tuple[dict[ChunkRef, _Flight], dict[ChunkRef, _Flight]]:
        """Flights that the caller must now lead (and `land`), and those of others that it may wait for."""
        mine: dict[ChunkRef, _Flight] = {}
        others: dict[ChunkRef, _Flight] = {}
        with self._lock:
            for ref in refs:
                flight = self._flying.get(ref)
                if flight is not None:
                    others[ref] = flight
                else:
                    mine[ref] = self._flying[ref] = _Flight()
        return mine, others

    def land(self, mine: dict[ChunkRef, _Flight]) -> None:
        """End flights: whoever waits for them goes on with what their `raw` is."""
        with self._lock:
            for ref in mine:
                del self._flying[ref]
        for flight in mine.values():
            flight.done.set()


class SingleFlight:
    """Asks `inner` once for a chunk that several threads want.

    `claims` of chunks that could not be had are given up; whoever keeps a chunk gives up its claim.
    """

    def __init__(
        self,
        inner: ChunkStore,
        *,
        stats: Stats,
        flights: Flights | None = None,
        local: LocalChunks | None = None,
        claims: Claimed | None = None,
        timeout: float = TIMEOUT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inner = inner
        self._flights = flights or Flights()
        self._local = local
        self._claims: Claimed = claims or NoClaims()
        self._stats = stats
        self._timeout = timeout
        self._clock = clock

    @property
    def name(self) -> str:
        return f"single-flight → {self._inner.name}"

    def get(self, wanted: Sequence[ChunkRef]) -> list[bytes]:
        deadline = self._clock() + self._timeout
        got: dict[ChunkRef, bytes] = {}
        rest = list(dict.fromkeys(wanted))
        while rest:
            mine, others = self._flights.board(rest)
            if mine:
                try:
                    self._lead(mine)
                finally:
                    self._flights.land(mine)
                    self._claims.release(ref.digest for ref, flight in mine.items() if flight.raw is None)
            for ref, flight in others.items():
                self._await(ref, flight, deadline)
            for ref, flight in (mine | others).items():
                if flight.raw is not None:
                    got[ref] = flight.raw
            self._stats.add(Count.SHARED, sum(flight.raw is not None for flight in others.values()))
            rest = [ref for ref in rest if ref not in got]
        return [got[ref] for ref in wanted]

    def has(self, digest: Digest) -> bool:
        return self._inner.has(digest)

    def close(self) -> None:
        self._inner.close()

    def _lead(self, mine: dict[ChunkRef, _Flight]) -> None:
        missing = []
        for ref, flight in mine.items():
            raw = self._local.peek(ref.digest) if self._local and not ref.compressed else None
            if raw is None:
                missing.append(ref)
            else:
                flight.raw = raw
        if not missing:
            return
        for ref, raw in zip(missing, self._inner.get(missing), strict=True):
            if self._local and not ref.compressed:
                self._local.put(ref.digest, raw)
            mine[ref].raw = raw

    def _await(self, ref: ChunkRef, flight: _Flight, deadline: float) -> None:
        if not flight.done.wait(max(0.0, deadline - self._clock())):
            self._stats.add(Count.GAVE_UP)
            raise SourceUnavailableError(
                f"chunk {to_text(ref.digest)}: gave up after waiting {self._timeout:g} s for another read"
                f" that is fetching it from {self._inner.name}",
                retryable=False,
            )
