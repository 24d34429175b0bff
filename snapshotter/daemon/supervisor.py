"""Keeps mount workers running, and every mount served by one of them.

The daemon holds a descriptor of every FUSE connection beside the worker that serves it. A worker that dies is replaced, after
a pause that grows while it keeps dying (`pause`), and its successor gets the same connections: the kernel hands it the requests
that were under way (Linux 6.9 and later), so no container sees an error.

When the daemon goes, its workers stay, each until the last container on its mounts has ended; the next daemon makes mounts of
its own for new containers. So nothing has to be carried over from one daemon to the next.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from snapshotter.daemon.sources import LayerSource
from snapshotter.errors import NotFoundError, PuzzlefsError, UnavailableError, UnsupportedError
from snapshotter.mount import mounting
from snapshotter.mount.connection import Connection
from snapshotter.mount.failures import FailureReport
from snapshotter.mount.workerclient import WorkerClient
from snapshotter.mount.workerproto import AddMount, Event, Gone, Ready

READY_TIMEOUT = 30.0
"""Seconds in which a new mount must answer the kernel's first request."""
PAUSE_MAX = 30.0
"""Longest pause before a worker is started again, in seconds."""
SETTLED_AFTER = 60.0
"""A worker that ran for this many seconds has not died of what its predecessor died of."""

_log = logging.getLogger(__name__)


def pause(deaths: int) -> float:
    """Seconds to wait before the next start, after `deaths` early ones in a row: 0, then 0.1 doubling up to `PAUSE_MAX`."""
    return 0.0 if deaths <= 1 else min(PAUSE_MAX, 0.1 * 2.0 ** (deaths - 2))


class Kernel(Protocol):
    """The calls that make and undo mounts (`mounting`)."""

    def mount(self, fd: int, mountpoint: Path, source: str) -> None:
        """Mount it."""
        ...

    def unmount(self, mountpoint: Path) -> None:
        """Take the topmost mount off."""
        ...


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker as it is now: its place, its process, its mounts, early deaths in a row, seconds since its start, and what it
    reports of itself (None: it does not answer)."""

    number: int
    pid: int
    mounts: tuple[str, ...]
    deaths: int
    seconds: float
    report: Mapping[str, Any] | None


@dataclass
class _Served:
    """A mount: what its worker was told, the connection, and what INIT agreed on."""

    add: AddMount
    connection: Connection
    ready: threading.Event = field(default_factory=threading.Event)
    refused: str | None = None


class _Slot:
    """The place of one worker: its mounts, which outlive it, and how often it died lately."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.client: WorkerClient | None = None
        self.mounts: dict[str, _Served] = {}
        self.started = 0.0
        self.deaths = 0
        self.lock = threading.RLock()


class Supervisor:
    """`layers.Mounts`: every mount in one of a fixed number of workers. Safe for use by many threads."""

    def __init__(self, command: Sequence[str], directory: Path, workers: int, kernel: Kernel = mounting) -> None:
        """`command` starts a worker, whose socket is in `directory`: by `start`, or when it is first needed."""
        self._command = command
        self._directory = directory
        self._kernel = kernel
        self._slots = [_Slot(number) for number in range(workers)]
        self._guard = threading.Lock()
        self._closing = threading.Event()

    def start(self) -> None:
        """Start all workers: one takes half a second to be ready, which the first pull need not wait for."""
        for slot in self._slots:
            with slot.lock:
                self._running(slot)

    def mount(self, name: str, mountpoint: Path, metadata: Path, source: LayerSource) -> None:
        """See `layers.Mounts`."""
        label = f"layer {name} of {' or '.join(source.images) or 'an unnamed image'}"
        slot = self._choose()
        key = str(mountpoint)
        served = _Served(AddMount(key, str(metadata), label, store=source.to_json()), Connection.open({"mountpoint": key}))
        try:
            # Mounted first: a connection that belongs to no mount yet looks to its worker like one whose mount is gone (EPERM).
            self._kernel.mount(served.connection.fuse, mountpoint, "puzzlefs")
            with slot.lock:
                slot.mounts[key] = served
                self._running(slot).add(served.add, served.connection)
            if not served.ready.wait(READY_TIMEOUT):
                raise UnavailableError(f"{label}: its mount did not answer within {READY_TIMEOUT:g} s")
            if served.refused is not None:
                raise UnsupportedError(f"{label}: {served.refused}")
        except BaseException:
            self._take_off(mountpoint)
            self._drop(slot, served)
            raise

    def unmount(self, mountpoint: Path) -> None:
        """See `layers.Mounts`. The worker lets go when the kernel says that the last user is gone."""
        self._take_off(mountpoint)
        for slot in self._slots:
            with slot.lock:
                served = slot.mounts.pop(str(mountpoint), None)
            if served is not None:
                served.connection.close()

    def update(self, mountpoint: Path, source: LayerSource) -> None:
        """See `layers.Mounts`."""
        for slot in self._slots:
            with slot.lock:
                served = slot.mounts.get(str(mountpoint))
                if served is not None:
                    served.add = dataclasses.replace(served.add, store=source.to_json())
                    try:
                        self._running(slot).update(served.add.mount_id, served.add.store)
                    except PuzzlefsError as error:
                        # Its worker has just died: the next one is told with the mount.
                        _log.warning("%s: its worker could not be told of a new source yet: %s", served.add.name, error)

    def workers(self) -> list[WorkerState]:
        """The workers that run now, each asked what it does."""
        states = []
        for slot in self._slots:
            with slot.lock:
                client, mounts = slot.client, tuple(slot.mounts)
            if client is None:
                continue
            try:
                report = client.stats()
            except PuzzlefsError:
                report = None
            states.append(WorkerState(slot.number, client.pid, mounts, slot.deaths, time.monotonic() - slot.started, report))
        return states

    def clear(self, directory: Path) -> int:
        """Take off what an earlier daemon mounted below `directory`; how many mounts that were."""
        stale = mounting.our_mounts(directory)
        for info in stale:
            self._take_off(info.mountpoint)
        return len(stale)

    def close(self) -> None:
        """Let the workers go: each serves on until its last mount is gone, and then ends."""
        self._closing.set()
        for slot in self._slots:
            with slot.lock:
                if slot.client is not None:
                    slot.client.detach()
                for served in slot.mounts.values():
                    served.connection.close()
                slot.mounts.clear()

    def _choose(self) -> _Slot:
        with self._guard:
            return min(self._slots, key=lambda slot: (len(slot.mounts), slot.number))

    def _running(self, slot: _Slot) -> WorkerClient:
        """The slot's worker, started if there is none. The slot is locked."""
        if slot.client is None:
            slot.client = WorkerClient.start(
                self._command, self._directory, self._on_event(slot), lambda status: self._on_exit(slot)
            )
            slot.started = time.monotonic()
            _log.info("mount worker %d started (pid %d)", slot.number, slot.client.pid)
        return slot.client

    def _on_event(self, slot: _Slot) -> Callable[[Event], None]:
        def handle(event: Event) -> None:
            match event:
                case Ready(mount_id, _, refused):
                    served = slot.mounts.get(mount_id)
                    if served is not None:
                        served.refused = refused
                        served.ready.set()
                case Gone(mount_id):
                    _log.debug("the mount on %s has ended", mount_id)
                case FailureReport():
                    _log.error("%s", event)

        return handle

    def _on_exit(self, slot: _Slot) -> None:
        """A worker has ended: start the next one with the same mounts. Runs in the thread that listened to it."""
        if self._closing.is_set():
            return
        with slot.lock:
            lasted = time.monotonic() - slot.started
            slot.client = None
            slot.deaths = 1 if lasted > SETTLED_AFTER else slot.deaths + 1
            mounts = len(slot.mounts)
        if not mounts:
            return
        wait = pause(slot.deaths)
        _log.error("mount worker %d died after %.1f s; %d mounts get a new one in %.1f s", slot.number, lasted, mounts, wait)
        if self._closing.wait(wait):
            return
        with slot.lock:
            for served in slot.mounts.values():
                self._hand_over(slot, served)

    def _hand_over(self, slot: _Slot, served: _Served) -> None:
        try:
            self._running(slot).add(served.add, served.connection)
        except PuzzlefsError as error:
            _log.error("%s is not served any more: %s", served.add.name, error)

    def _drop(self, slot: _Slot, served: _Served) -> None:
        with slot.lock:
            slot.mounts.pop(served.add.mount_id, None)
            if slot.client is not None:
                with contextlib.suppress(PuzzlefsError):
                    slot.client.remove(served.add.mount_id)
        served.connection.close()

    def _take_off(self, mountpoint: Path) -> None:
        with contextlib.suppress(NotFoundError):
            self._kernel.unmount(mountpoint)
