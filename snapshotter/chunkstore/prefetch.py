"""Fetches at once what a start is known to read: a profile pack of the image, or the chunks of a start that was recorded here.

A thread a start, which asks for a few large ranges in reading order (`packs.PackStore.bring`). A read of a chunk that is on its
way waits for it; everything else is fetched as ever, over other connections.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from snapshotter.chunkstore.base import BlobReader, ChunkMissingError
from snapshotter.chunkstore.bringing import Bringing
from snapshotter.chunkstore.indexes import IndexStore
from snapshotter.chunkstore.recorder import read_records
from snapshotter.errors import PuzzlefsError
from snapshotter.format.annotations import PackPlace
from snapshotter.format.digest import Digest, to_text

RANGE = 2 << 20
"""Stored bytes of one request: 80 ms at 200 Mbit/s, so that the first chunks are there when the command begins to read."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Start:
    """What is known of a layer's start: a pack to fetch whole, or a file of records; `layer` is its name in logs."""

    layer: str
    profile: Digest | None = None
    recorded: Path | None = None


class Prefetches:
    """The starts that are being fetched. Safe to use from any thread."""

    def __init__(self, indexes: IndexStore) -> None:
        self._indexes = indexes
        self._lock = threading.Lock()
        self._threads: dict[threading.Thread, str] = {}
        """With the layer that each fetches for."""
        self._closed = False

    def begin(
        self,
        start: Start,
        packs: Sequence[PackPlace],
        sources: Sequence[BlobReader],
        bringing: Callable[[Sequence[PackPlace]], Bringing],
    ) -> None:
        """Fetch what `start` names out of `packs`; `bringing` makes what fetches from some of them."""
        thread = threading.Thread(target=self._run, args=(start, packs, sources, bringing), name="start", daemon=True)
        with self._lock:
            if self._closed:
                return
            self._threads[thread] = start.layer
            thread.start()

    def fetches(self, layer: str) -> bool:
        """Whether the start of `layer` is on its way."""
        with self._lock:
            return layer in self._threads.values()

    def settle(self) -> None:
        """Wait until everything that has begun has ended."""
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join()

    def close(self) -> None:
        """Begin nothing more. What is under way ends with its pool."""
        with self._lock:
            self._closed = True

    def _run(
        self,
        start: Start,
        packs: Sequence[PackPlace],
        sources: Sequence[BlobReader],
        bringing: Callable[[Sequence[PackPlace]], Bringing],
    ) -> None:
        try:
            if start.profile is not None:
                places = [place for place in packs if place.pack == start.profile]
                bringing(places).bring([d for place in places for d in self._in_order(place, sources)], RANGE)
            elif start.recorded is not None:
                bringing(packs).bring(read_records([start.recorded]), RANGE)
        except ChunkMissingError as error:
            log.debug("layer %s: not all of its recorded start is in its packs: %s", start.layer, error)
        except PuzzlefsError as error:
            log.warning("layer %s: its start cannot be fetched at once, only as it is read: %s", start.layer, error)
        except Exception:
            log.exception("layer %s: fetching its start failed", start.layer)
        finally:
            with self._lock:
                self._threads.pop(threading.current_thread(), None)

    def _in_order(self, place: PackPlace, sources: Sequence[BlobReader]) -> list[Digest]:
        index = self._indexes.open(place, sources)
        log.debug("profile pack %s has %d chunks", to_text(place.pack), len(index))
        return [entry.digest for entry in sorted(index, key=lambda entry: (entry.offset, entry.within))]
