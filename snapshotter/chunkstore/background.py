"""Fetches the rest of mounted layers when nobody is waiting for anything.

One thread a process. It begins when no read has had to wait for a while, takes one range at a time and pauses after each so
that the rate holds; as soon as a read waits for the network it stands back until it is quiet again. What is local is known from
the cache alone, so it goes on where it was after a restart.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Protocol

from snapshotter.chunkstore.bringing import Bringing
from snapshotter.chunkstore.local import LocalChunks
from snapshotter.chunkstore.reads import Reads
from snapshotter.errors import PuzzlefsError
from snapshotter.format.annotations import PackPlace
from snapshotter.format.digest import Digest
from snapshotter.format.pack import PackEntry, PackIndex

RANGE = 1 << 20
"""Stored bytes of one request: what a read may have to wait for when it comes in the middle, 40 ms at 200 Mbit/s."""

POLL = 0.25
RETRY = 60.0
"""Seconds before a layer is tried again whose source has failed."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BackgroundPolicy:
    """When to fetch unasked, and how fast: after `quiet` seconds without a read that waited, `rate` bytes a second."""

    quiet: float = 60.0
    rate: float = 8e6


class Rest(Protocol):
    """A layer of which the rest is to be fetched."""

    def missing(self) -> Iterator[PackEntry]:
        """The chunks that are not local, in the order in which to fetch them.

        Raises:
            PuzzlefsError: it cannot be told now.
        """
        ...

    def bring(self, digests: Sequence[Digest]) -> None:
        """Fetch these.

        Raises:
            PuzzlefsError: not all have come.
        """
        ...


class Background:
    """The layers of one process whose rest is fetched, in the order in which they came. Safe to use from any thread."""

    def __init__(
        self, policy: BackgroundPolicy, reads: Reads, clock: Callable[[], float] = time.monotonic, poll: float = POLL
    ) -> None:
        self._policy = policy
        self._reads = reads
        self._clock = clock
        self._poll = poll
        self._lock = threading.Lock()
        self._layers: dict[str, list[Rest]] = {}
        self._fetched: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._closing = threading.Event()
        self._wanted = threading.Event()  # set while there is a layer, and when closing
        self._thread: threading.Thread | None = None
        self._busy_at = clock()
        self._seen = reads.fetches

    def add(self, layer: str, rest: Rest) -> None:
        """Fetch the rest of `layer` too, until it is all here or `drop` has been called for each `rest` that was given.

        Of several for one layer, which is mounted more than once or read from other places now, the last one is asked.
        """
        with self._lock:
            self._layers.setdefault(layer, []).append(rest)
            self._wanted.set()
            self._busy_at = self._clock()
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._run, name="background", daemon=True)
                self._thread.start()

    def drop(self, layer: str, rest: Rest) -> None:
        """Nobody wants `rest` any more. Waits for nothing: a range under way still comes. Calling it again does nothing."""
        with self._lock:
            left = [other for other in self._layers.get(layer, ()) if other is not rest]
            if left:
                self._layers[layer] = left
            else:
                self._forget(layer)

    def report(self) -> dict[str, Any]:
        """By layer: ``fetched`` (stored bytes, by this process), and ``state``: ``waiting`` for quiet, or for its source after
        a failure, or ``fetching``. Layers that are all local are gone from here."""
        with self._lock:
            quiet = self._is_quiet()
            now = self._clock()
            first = next((layer for layer in self._layers if self._not_before.get(layer, 0) <= now), None)
            return {
                layer: {
                    "fetched": self._fetched.get(layer, 0),
                    "state": "fetching" if quiet and layer == first else "waiting",
                }
                for layer in self._layers
            }

    def close(self) -> None:
        """End the thread after the range that is under way. Calling it again does nothing."""
        self._closing.set()
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()

    def step(self) -> float:
        """Fetch one range of the first layer that lacks something; seconds to wait before the next step."""
        with self._lock:
            quiet = self._is_quiet()
            now = self._clock()
            layer, rest = next(
                ((name, rests[-1]) for name, rests in self._layers.items() if self._not_before.get(name, 0) <= now),
                (None, None),
            )
        if not quiet or layer is None or rest is None:
            return self._poll
        try:
            chosen = _first_range(rest.missing())
            if not chosen:
                with self._lock:
                    self._forget(layer)
                log.info("layer %s is all on this node", layer)
                return 0.0
            rest.bring([entry.digest for entry in chosen])
        except Exception as error:
            with self._lock:
                if rest not in self._layers.get(layer, ()):
                    return 0.0  # it was dropped while it was looked at, and its metadata closed
                self._not_before[layer] = self._clock() + RETRY
            unexpected = None if isinstance(error, PuzzlefsError) else error
            log.log(
                logging.ERROR if unexpected else logging.INFO,
                "layer %s: its rest cannot be fetched now: %s", layer, error, exc_info=unexpected,
            )  # fmt: skip
            return self._poll
        size = sum({entry.offset: entry.stored_length for entry in chosen}.values())
        with self._lock:
            if layer in self._layers:
                self._fetched[layer] = self._fetched.get(layer, 0) + size
        return max(0.0, size / self._policy.rate - (self._clock() - now))

    def _is_quiet(self) -> bool:
        now = self._clock()
        if self._reads.busy or self._reads.fetches != self._seen:
            self._seen = self._reads.fetches
            self._busy_at = now
        return now - self._busy_at >= self._policy.quiet

    def _forget(self, layer: str) -> None:
        """The lock is held by the caller."""
        self._layers.pop(layer, None)
        self._fetched.pop(layer, None)
        self._not_before.pop(layer, None)
        if not self._layers and not self._closing.is_set():
            self._wanted.clear()

    def _run(self) -> None:
        wait = 0.0
        while not self._closing.wait(wait):
            self._wanted.wait()
            wait = self.step()


def _first_range(missing: Iterator[PackEntry]) -> list[PackEntry]:
    chosen: list[PackEntry] = []
    size = 0
    for entry in missing:
        size += entry.stored_length
        if chosen and size > RANGE:
            break
        chosen.append(entry)
    return chosen


class PackRest:
    """`Rest` of a layer whose chunks (those that it `has`) are in `packs`, to be had by `bringing` to the cache `local`.

    `index` opens a pack's index. What is in a profile pack is in the others too, so it is not looked at.
    """

    def __init__(
        self,
        bringing: Bringing,
        packs: Sequence[PackPlace],
        index: Callable[[PackPlace], PackIndex],
        has: Callable[[Digest], bool],
        local: LocalChunks,
    ) -> None:
        self._bringing = bringing
        self._packs = packs
        self._index = index
        self._has = has
        self._local = local

    def missing(self) -> Iterator[PackEntry]:
        """See `Rest`."""
        for place in self._packs:
            index = self._index(place)
            if not index.has_groups:
                for entry in sorted(index, key=attrgetter("offset")):
                    if self._has(entry.digest) and not self._local.has(entry.digest):
                        yield entry

    def bring(self, digests: Sequence[Digest]) -> None:
        """See `Rest`."""
        self._bringing.bring(digests, RANGE)
