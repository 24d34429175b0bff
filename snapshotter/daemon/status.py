"""What the daemon is doing now, gathered when somebody asks: for ``puzzlefs status`` and for metrics."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from snapshotter import __version__
from snapshotter.chunkstore.chain import Node
from snapshotter.chunkstore.coverage import Coverage, cover
from snapshotter.chunkstore.directory import Usage
from snapshotter.chunkstore.reads import KINDS
from snapshotter.chunkstore.reserve import Cap
from snapshotter.daemon.activity import Activity, Totals
from snapshotter.daemon.sources import LayerSource
from snapshotter.daemon.supervisor import WorkerState
from snapshotter.errors import NotFoundError, PuzzlefsError
from snapshotter.format.digest import Digest, to_text

STATUS_VERSION = 1
"""Of `Overview.to_json`; grows when a reader of today would be misled."""

FRESH = 5.0
"""Seconds for which coverage and the cache's size are believed: 4,600 chunks take 30 ms to look up."""

ERRORS_KEPT = 50
_TEXT_MAX = 2000


class LayersView(Protocol):
    """What `status` needs of `layers.Layers`."""

    def mounted(self) -> Mapping[Digest, LayerSource]:
        """The mounted layers and where their chunks are from."""
        ...

    def chunks(self, diff_id: Digest) -> Sequence[Digest]:
        """The chunks of one."""
        ...

    def mountpoint(self, diff_id: Digest) -> Path:
        """Where it is mounted."""
        ...


@dataclass(frozen=True, slots=True)
class LayerMount:
    """A mounted layer (its diff ID as text): `of` whom (a key of `Status`'s `layers`), for which images, and where."""

    layer: str
    of: str
    images: Sequence[str]
    mountpoint: str


class RecentErrors(logging.Handler):
    """Keeps the last `ERRORS_KEPT` warnings and errors that were logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._kept: deque[dict[str, str]] = deque(maxlen=ERRORS_KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        self._kept.append({"time": when, "level": record.levelname.lower(), "message": record.getMessage()[:_TEXT_MAX]})

    def list(self) -> list[dict[str, str]]:
        """Those kept, the oldest first: ``time`` (ISO 8601, UTC), ``level``, ``message``."""
        return list(self._kept)


@dataclass(frozen=True, slots=True)
class CacheState:
    """The chunk cache: directory, what it takes, cap (None: none), bytes free on its file system."""

    path: Path
    usage: Usage
    cap: Cap | None
    free: int


@dataclass(frozen=True, slots=True)
class Overview:
    """The daemon at one moment. `layers` maps the diff ID of every layer in `mounts` to its coverage."""

    started: float
    workers: Sequence[WorkerState]
    totals: Totals
    layers: Mapping[str, Coverage]
    mounts: Sequence[LayerMount]
    failed: Mapping[str, str]
    cache: CacheState
    background: Mapping[str, Any]
    errors: Sequence[Mapping[str, str]]

    def to_json(self) -> dict[str, Any]:
        """As JSON values. Sizes are bytes, times ISO 8601 in UTC; names are those of this package's classes and of `Count`."""
        place = {mount: state.number for state in self.workers for mount in state.mounts}
        waiting = [
            {**read, "worker": state.number}
            for state in self.workers
            for read in (state.report or {}).get("reads", {}).get("waiting", ())
        ]
        layers: dict[str, dict[str, Any]] = {
            layer: {**coverage.to_json(), "mounts": []} for layer, coverage in self.layers.items()
        }
        for mount in self.mounts:
            layers[mount.layer]["mounts"].append(
                {
                    "of": mount.of,
                    "images": list(mount.images),
                    "mountpoint": mount.mountpoint,
                    "worker": place.get(mount.mountpoint),
                }
            )
        return {
            "version": STATUS_VERSION,
            "program": __version__,
            "started": datetime.fromtimestamp(self.started, UTC).isoformat(timespec="seconds"),
            "images": self._images(),
            "layers": layers,
            "failed": dict(self.failed),
            "workers": [
                {
                    "number": state.number,
                    "pid": state.pid,
                    "mounts": len(state.mounts),
                    "deaths": state.deaths,
                    "seconds": round(state.seconds, 1),
                    "answers": state.report is not None,
                }
                for state in self.workers
            ],
            "reads": {
                kind: {
                    "in_flight": self.totals.in_flight[kind],
                    "hung": self.totals.hung[kind],
                    "failed": self.totals.failed[kind],
                    "done": sum(self.totals.latency[kind]),
                    "seconds": round(self.totals.seconds[kind], 3),
                }
                for kind in KINDS
            },
            "fetching": waiting,
            "background": dict(self.background),
            "cache": {
                "path": str(self.cache.path),
                "used": self.cache.usage.used,
                "chunks": self.cache.usage.chunks,
                "recent": self.cache.usage.recent,
                "max": None if self.cache.cap is None else self.cache.cap.max_bytes,
                "reserve": None if self.cache.cap is None else self.cache.cap.reserved_bytes,
                "free": self.cache.free,
            },
            "counters": {what.value: counted for what, counted in sorted(self.totals.counts.items())},
            "errors": list(self.errors),
        }

    def _images(self) -> dict[str, Any]:
        """By the name under which an image is known: whose it is, its layers and their coverage together."""
        images: dict[str, tuple[dict[str, None], dict[str, None]]] = {}  # dictionaries for their keys, in order
        for mount in self.mounts:
            for image in mount.images:
                of, layers = images.setdefault(image, ({}, {}))
                of[mount.of] = layers[mount.layer] = None
        return {
            image: {
                "of": list(of),
                "layers": list(layers),
                **sum((self.layers[layer] for layer in layers), Coverage()).to_json(),
            }
            for image, (of, layers) in images.items()
        }


def _background(workers: Sequence[WorkerState]) -> dict[str, Any]:
    """By layer, what its worker says of the rest of it (`background.Background.report`), and which worker that is."""
    return {
        layer: {**told, "worker": state.number}
        for state in workers
        for layer, told in (state.report or {}).get("background", {}).items()
    }


class Status:
    """Gathers an `Overview`. Safe to use from any thread."""

    def __init__(
        self,
        node: Node,
        layers: Mapping[str, LayersView],
        activity: Activity,
        *,
        failed: Callable[[], Mapping[Digest, PuzzlefsError]],
        cap: Cap | None,
        errors: RecentErrors,
    ) -> None:
        """`layers` by whose they are: ``containerd``, ``podman``. `failed` are those that cannot be mounted, and why."""
        self._node = node
        self._layers = layers
        self._activity = activity
        self._failed = failed
        self._cap = cap
        self._errors = errors
        self._started = time.time()
        self._lock = threading.Lock()
        self._known: tuple[float, dict[str, Coverage], CacheState] | None = None

    def take(self) -> Overview:
        """The daemon as it is now; coverage and the cache's size may be `FRESH` seconds old."""
        workers, totals = self._activity.take()
        mounted = {of: view.mounted() for of, view in self._layers.items()}
        coverage, cache = self._measure(mounted)
        mounts = []
        for of, sources in mounted.items():
            for diff_id, source in sources.items():
                if to_text(diff_id) in coverage:
                    with contextlib.suppress(NotFoundError):  # it was removed meanwhile
                        mountpoint = str(self._layers[of].mountpoint(diff_id))
                        mounts.append(LayerMount(to_text(diff_id), of, source.images, mountpoint))
        return Overview(
            started=self._started,
            workers=workers,
            totals=totals,
            layers={mount.layer: coverage[mount.layer] for mount in mounts},
            mounts=mounts,
            failed={to_text(diff_id): str(error) for diff_id, error in self._failed().items()},
            cache=cache,
            background=_background(workers),
            errors=self._errors.list(),
        )

    def _measure(self, mounted: Mapping[str, Mapping[Digest, LayerSource]]) -> tuple[dict[str, Coverage], CacheState]:
        with self._lock:
            names = {to_text(diff_id) for sources in mounted.values() for diff_id in sources}
            now = time.monotonic()
            if self._known is not None and now - self._known[0] < FRESH and names <= self._known[1].keys():
                return self._known[1], self._known[2]
            coverage: dict[str, Coverage] = {}
            for of, sources in mounted.items():
                for diff_id, source in sources.items():
                    if to_text(diff_id) in coverage:
                        continue  # the same chunks, whoever's mount it is
                    try:
                        coverage[to_text(diff_id)] = self._cover(self._layers[of], diff_id, source)
                    except (PuzzlefsError, OSError):
                        continue  # it is being removed
            directory = self._node.cache.directory
            existing = next(path for path in (directory.path, *directory.path.parents) if path.exists())
            cache = CacheState(directory.path, directory.usage(), self._cap, shutil.disk_usage(existing).free)
            self._known = (now, coverage, cache)
            return coverage, cache

    def _cover(self, layers: LayersView, diff_id: Digest, source: LayerSource) -> Coverage:
        indexes = [index for place in source.packs if (index := self._node.indexes.local(place)) is not None]
        return cover(layers.chunks(diff_id), indexes, self._node.cache.directory.size)
