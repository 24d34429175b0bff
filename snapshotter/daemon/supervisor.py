"""Keeps mount workers running, and every mount served by one of them: the shell around `supervision`, which decides.

The daemon mounts, and holds every connection (`keeping.Held`) beside the worker that serves it. A worker that dies is followed
by another, which has the same connections and answers what was under way: no container sees an error. When the daemon goes, its
workers stay; the next daemon finds them by their sockets and goes on with them (`Supervisor.start`). When workers and daemon
go together, the connections are in the descriptor store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import secrets
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapshotter.daemon import inheritance, supervision
from snapshotter.daemon.heartbeat import Heartbeat
from snapshotter.daemon.inheritance import Mount
from snapshotter.daemon.keeping import Held
from snapshotter.daemon.sources import LayerSource
from snapshotter.daemon.supervision import (
    Blame,
    Ended,
    Found,
    GiveUp,
    Kill,
    Phase,
    Placed,
    Refused,
    Report,
    Serve,
    Silent,
    Start,
    Supervision,
)
from snapshotter.errors import (
    AlreadyExistsError,
    CorruptError,
    InvalidError,
    NotFoundError,
    PuzzlefsError,
    UnavailableError,
    UnsupportedError,
)
from snapshotter.mount import journal, mounting
from snapshotter.mount.connection import Connection
from snapshotter.mount.failures import FailureReport
from snapshotter.mount.workerclient import WorkerClient
from snapshotter.mount.workerproto import AddMount, Event, Gone, Ready

READY_TIMEOUT = 30.0
"""Seconds in which a new mount must answer the kernel's first request."""
PING_EVERY = 5.0
PING_TIMEOUT = 5.0
"""Seconds in which workers, asked all at once, must answer, all they do for their mounts notwithstanding."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker as it is now: its place, its process, the mountpoints it serves, early deaths in a row, seconds since its start,
    what it reports of itself (None: it does not answer), how often a process was followed by another."""

    number: int
    pid: int
    mounts: tuple[str, ...]
    deaths: int
    seconds: float
    report: Mapping[str, Any] | None
    restarts: int = 0


class Supervisor:
    """`layers.Mounts`: every mount in one of a few workers, whatever dies. Safe for use by many threads."""

    def __init__(self, command: Sequence[str], directory: Path, workers: int, held: Held, identity: str = "") -> None:
        """`command` starts a worker, whose socket is in `directory`; `identity` names what is started by it.

        Raises:
            InvalidError: there is to be no worker.
        """
        if workers < 1:
            raise InvalidError("there must be at least one mount worker")
        self._command = [*command, "--identity", identity]
        self._directory = directory
        self._held = held
        self._identity = identity
        self._state = Supervision(workers)
        self._mounts: dict[str, Mount] = {}
        self._clients: dict[int, WorkerClient] = {}
        self._lock = threading.RLock()
        self._events: deque[supervision.Event] = deque()
        self._stepping = False
        self._unserved: set[str] = set()
        self._last_round = time.monotonic()
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=run, name=name, daemon=True)
            for name, run in (("supervisor", self._keep_time), ("watchdog", self._watch))
        ]

    def start(self) -> int:
        """Find the workers of an earlier daemon, and what it held; the number of mounts that go on. Once, first.

        Afterwards `mount` goes on with what is found, where it is the layer that is asked for; `settle` is to follow.
        """
        found = inheritance.find_workers(self._directory, self._on_event, self._on_exit)
        with self._lock:
            for number, worker in enumerate(found):
                self._clients[number] = worker.client
                current = worker.is_of(self._identity)
                # What a worker of another release was told is not repeated to ours: `mount` says it anew.
                mounts = [i for i, add, held in worker.mounts if self._adopt(i, held, add if current else None)]
                self._step(Found(number, tuple(mounts), current))
            for ident, connection in self._held.found().items():
                if inheritance.is_layer(connection):
                    self._adopt(ident, connection, None)
        for thread in self._threads:
            thread.start()
        return len(self._mounts)

    def settle(self) -> None:
        """Take off what an earlier daemon had mounted and nobody has asked for since `start`."""
        with self._lock:
            for mount in [mount for mount in self._mounts.values() if not mount.claimed]:
                if not mount.detached:
                    self._take_off(mount.mountpoint)
                    mount.detached = True
                if mount.add is None:
                    self._step(supervision.Gone(mount.ident))
                    self._forget(mount.ident)

    def stand_by(self) -> None:
        """Start a worker if none runs: a process takes 0.2 s to start, which the first image need not wait for."""
        self._step(supervision.Expected())

    def clear(self, directory: Path) -> int:
        """Take off what is mounted below `directory` and served by nobody; how many mounts that were. Before `mount`."""
        points = [info.mountpoint for info in mounting.our_mounts(directory)]
        with self._lock:
            below = [mount for mount in self._mounts.values() if mount.mountpoint.is_relative_to(directory)]
            ours = {mount.mountpoint for mount in below}
            # Where one lies over another, what is seen may be the one that nobody serves.
            doubtful = {point for point in points if points.count(point) > 1}
            for mount in below:
                if mount.mountpoint in doubtful or mount.mountpoint not in points:
                    mount.detached = True
        stale = [point for point in points if point not in ours or point in doubtful]
        for point in stale:
            self._take_off(point)
        return len(stale)

    def mount(self, name: str, mountpoint: Path, metadata: Path, source: LayerSource) -> None:
        """See `layers.Mounts`."""
        label = f"layer {name} of {' or '.join(source.images) or 'an unnamed image'}"
        with self._lock:
            mount = self._claim(name, mountpoint)
            if mount is not None:
                mount.claimed = True
                told, mount.add = mount.add, AddMount(mount.ident, str(metadata), label, store=source.to_json())
                place = self._state.place_of(mount.ident)
                if place is None:
                    self._step(Placed(mount.ident))
                elif told is None and place.phase is Phase.RUNNING:
                    self._serve(place.number, mount.ident)  # its process was not given it before it was asked for
        if mount is None:
            mount = self._make(name, mountpoint, metadata, label, source)
        elif told is not None and told.store != source.to_json():
            self._tell(mount)
        try:
            if not mount.ready.wait(READY_TIMEOUT):
                raise UnavailableError(f"{label}: its mount did not answer within {READY_TIMEOUT:g} s")
            if mount.refused is not None:
                raise type(mount.refused)(f"{label}: {mount.refused}")
        except BaseException:
            self._take_off(mountpoint)
            self._drop(mount)
            raise

    def unmount(self, mountpoint: Path) -> None:
        """See `layers.Mounts`. Workers serve the mount until the kernel says that its last user is gone, but fetch nothing
        unasked for it."""
        told = []
        with self._lock:
            self._take_off(mountpoint)
            for mount in self._mounts.values():
                if mount.mountpoint == mountpoint:
                    mount.detached = True
                    if mount.add is not None and mount.add.store.get("background"):
                        source = LayerSource.from_json(mount.add.store)
                        mount.add = dataclasses.replace(mount.add, store=source.unattended().to_json())
                        told.append(mount)
        for mount in told:
            self._tell(mount)

    def update(self, mountpoint: Path, source: LayerSource) -> None:
        """See `layers.Mounts`."""
        with self._lock:
            for mount in self._mounts.values():
                if mount.mountpoint == mountpoint and not mount.detached and mount.add is not None:
                    mount.add = dataclasses.replace(mount.add, store=source.to_json())
                    break
            else:
                return
        self._tell(mount)

    def workers(self) -> list[WorkerState]:
        """The workers that run now, each asked what it does."""
        with self._lock:
            places = [
                (dataclasses.replace(place, mounts=dict(place.mounts)), self._clients.get(place.number))
                for place in sorted(self._state.places.values(), key=lambda place: place.number)
            ]
            points = {ident: str(mount.mountpoint) for ident, mount in self._mounts.items()}
        states = []
        for place, client in places:
            if client is None:
                continue
            mounts = tuple(points[ident] for ident in place.mounts if ident in points)
            report = None
            with contextlib.suppress(PuzzlefsError):
                report = client.stats()
            seconds = time.monotonic() - place.since
            states.append(WorkerState(place.number, client.pid, mounts, place.deaths, seconds, report, place.restarts))
        return states

    def is_well(self) -> bool:
        """Whether workers are looked after: for the service manager's watchdog."""
        return time.monotonic() - self._last_round < 3 * (PING_EVERY + PING_TIMEOUT)

    def close(self) -> None:
        """Let the workers go: they serve on, and the next daemon finds them."""
        self._closing.set()
        self._changed.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        with self._lock:
            clients, self._clients = self._clients, {}
        for client in clients.values():
            client.detach()

    # --- what an earlier daemon left

    def _adopt(self, ident: str, connection: Connection, add: AddMount | None) -> bool:
        """Go on with a mount of an earlier daemon; if that cannot be, its connection is closed."""
        if ident in self._mounts:  # another worker has it too: one that its daemon had given up
            connection.close()
            return False
        self._held.hold(ident, connection)
        mount = inheritance.adopted(ident, connection, add)
        if mount is None:
            self._held.release(ident)
            return False
        self._mounts[ident] = mount
        return True

    def _claim(self, name: str, mountpoint: Path) -> Mount | None:
        """The mount of an earlier daemon that is on `mountpoint`, if it shows this layer."""
        for mount in self._mounts.values():
            if mount.mountpoint == mountpoint and not mount.detached:
                if mount.name == name:
                    return mount
                self._take_off(mountpoint)
                mount.detached = True
        return None

    # --- mounts

    def _make(self, name: str, mountpoint: Path, metadata: Path, label: str, source: LayerSource) -> Mount:
        ident = f"{mountpoint.name}-{secrets.token_hex(4)}"
        connection = Connection.open(inheritance.label(name, mountpoint))
        try:
            # Mounted first: a connection that belongs to no mount yet looks to its worker like one whose mount is gone (EPERM).
            mounting.mount(connection.fuse, mountpoint, "puzzlefs")
        except BaseException:
            connection.close()
            raise
        add = AddMount(ident, str(metadata), label, store=source.to_json())
        mount = Mount(ident, name, mountpoint, connection, add, claimed=True)
        self._held.hold(ident, connection)
        with self._lock:
            self._mounts[ident] = mount
            self._step(Placed(ident))
        return mount

    def _tell(self, mount: Mount) -> None:
        """Tell the worker of a mount of its source. One that has just died is followed by one that is told with the mount."""
        with self._lock:
            place = self._state.place_of(mount.ident)
            client = self._clients.get(place.number) if place is not None else None
        try:
            if client is not None and mount.add is not None:
                client.update(mount.ident, mount.add.store)
        except NotFoundError:
            return  # it is gone, or is told with the mount
        except PuzzlefsError as error:
            _log.warning("%s: its worker could not be told of a new source yet: %s", mount.name, error)

    def _drop(self, mount: Mount) -> None:
        with self._lock:
            place = self._state.place_of(mount.ident)
            client = self._clients.get(place.number) if place is not None else None
            self._step(supervision.Gone(mount.ident))
            self._forget(mount.ident)
        if client is not None:
            with contextlib.suppress(PuzzlefsError):
                client.remove(mount.ident)

    def _forget(self, ident: str) -> None:
        if self._mounts.pop(ident, None) is not None:
            self._held.release(ident)

    def _take_off(self, mountpoint: Path) -> None:
        with contextlib.suppress(NotFoundError):
            mounting.unmount(mountpoint)

    # --- events and actions

    def _step(self, event: supervision.Event) -> None:
        """Have the machine decide about `event`, and do what it says; events that come of that follow one another."""
        with self._lock:
            self._events.append(event)
            if self._stepping or self._closing.is_set():
                return
            self._stepping = True
            try:
                while self._events:
                    for action in self._state.step(self._events.popleft(), time.monotonic()):
                        self._act(action)
            finally:
                self._stepping = False
            self._changed.set()

    def _act(self, action: supervision.Action) -> None:
        match action:
            case Start(worker):
                self._start_worker(worker)
            case Serve(worker, ident):
                self._serve(worker, ident)
            case Kill(worker):
                client = self._clients.get(worker)
                if client is not None:
                    client.begin_kill()
            case Blame(ident):
                mount = self._mounts.get(ident)
                if mount is not None:
                    try:
                        journal.blame(mount.connection.memory)
                    except OSError as error:  # no descriptor, no memory: it is counted the next time
                        self._report(f"{mount.name}: it is not remembered what its worker crashed with: {error}", bad=True)
            case GiveUp(ident, reason):
                mount = self._mounts.get(ident)
                if mount is not None:
                    self._report(f"{mount.name} is not served any more: {reason}", bad=mount.ready.is_set())
                    mount.refused = mount.refused or UnavailableError(reason)
                    mount.ready.set()
                    self._forget(ident)
            case Report(text, bad):
                self._report(text, bad)

    def _start_worker(self, worker: int) -> None:
        try:
            client = WorkerClient.start(self._command, self._directory, self._on_event, self._on_exit(worker))
        except (PuzzlefsError, OSError) as error:
            self._report(f"mount worker {worker} cannot be started: {error}", bad=True)
            self._events.append(Ended(worker, killed=False))
            return
        self._clients[worker] = client
        _log.info("mount worker %d started (pid %d)", worker, client.pid)

    def _serve(self, worker: int, ident: str) -> None:
        mount, client = self._mounts.get(ident), self._clients.get(worker)
        if mount is None or client is None:
            return
        if mount.add is None:
            return  # nobody has asked for it since the start: `mount` follows, or `settle`

        def answered(error: PuzzlefsError | None) -> None:
            if error is None or isinstance(error, UnavailableError | AlreadyExistsError):
                return  # one that has ended is followed by another, which is asked again
            if isinstance(error, NotFoundError | CorruptError) or not mount.ready.is_set():
                mount.refused = error
                self._step(Refused(worker, ident, str(error)))
            else:
                self._report(f"{mount.name} is not served at the moment: {error}", bad=True)
                with self._lock:
                    self._unserved.add(ident)

        # One that cannot be reached has ended, which is heard of soon.
        with contextlib.suppress(UnavailableError):
            client.begin_add(mount.add, mount.connection, answered)

    def _on_event(self, event: Event) -> None:
        match event:
            case Ready(ident, _, refused):
                with self._lock:
                    mount = self._mounts.get(ident)
                    if mount is not None:
                        mount.refused = None if refused is None else UnsupportedError(refused)
                        mount.ready.set()
            case Gone(ident):
                with self._lock:
                    self._step(supervision.Gone(ident))
                    self._forget(ident)
            case FailureReport():
                self._report(str(event), bad=True)

    def _on_exit(self, worker: int) -> Callable[[int | None], None]:
        def ended(status: int | None) -> None:
            with self._lock:
                if not self._closing.is_set():
                    self._clients.pop(worker, None)
                    self._step(Ended(worker, killed=status in (None, -signal.SIGKILL)))

        return ended

    def _report(self, text: str, bad: bool) -> None:
        _log.log(logging.ERROR if bad else logging.INFO, "%s", text)

    # --- threads

    def _keep_time(self) -> None:
        while not self._closing.is_set():
            with self._lock:
                due = self._state.due()
            if due is not None and due <= time.monotonic():
                self._step(supervision.Tick())
                continue
            self._changed.wait(None if due is None else max(0.0, due - time.monotonic()))
            self._changed.clear()

    def _watch(self) -> None:
        heartbeat = Heartbeat()
        while not self._closing.wait(PING_EVERY):
            with self._lock:
                clients = dict(self._clients)
            for worker, client in heartbeat.silent(clients, PING_TIMEOUT).items():
                with self._lock:
                    if self._clients.get(worker) is client:
                        self._step(Silent(worker, client.answered))
            with self._lock:
                unserved, self._unserved = self._unserved, set()
                for ident in unserved:
                    place = self._state.place_of(ident)
                    if place is not None and place.phase is Phase.RUNNING:
                        self._serve(place.number, ident)
            self._last_round = time.monotonic()
