"""The mount worker process: gets mounts from the daemon and serves them, whatever becomes of the daemon.

The process is started with a listening socket (``--socket-fd``), by which it can be found again. When the daemon goes away it
serves on, since containers stand on it: until the next daemon asks for its mounts, or the last of them is gone. It knows no way
to make a chunk store: an entry module of the daemon's passes one to `main`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import gc
import logging
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from snapshotter.chunkstore.base import AtHand, ChunkRef, ChunkStore
from snapshotter.chunkstore.directory import VerityOf
from snapshotter.chunkstore.foreseen import GivesOn
from snapshotter.errors import AlreadyExistsError, InvalidError, NotFoundError
from snapshotter.format.digest import Digest
from snapshotter.mount import messages, workerproto
from snapshotter.mount.connection import Connection
from snapshotter.mount.failures import FailureReport, FailureReporter
from snapshotter.mount.journal import Journal
from snapshotter.mount.messages import Message
from snapshotter.mount.processors import Processors
from snapshotter.mount.server import Server
from snapshotter.mount.session import Failure, Session
from snapshotter.mount.tree import Tree
from snapshotter.mount.trees import Trees
from snapshotter.mount.workerproto import AddMount, Event, Gone, Hello, Ready

MakeStore = Callable[[Mapping[str, Any], VerityOf], ChunkStore]
"""Makes the chunk store of one mount from the `store` of its `AddMount`, and what its metadata names as the chunks' fs-verity
digests. What mounts share is the factory's to keep."""

BEAT_TIMEOUT = 3.0
"""Seconds in which the event loop must come round, for a worker to call itself alive."""

Report = Callable[[], Mapping[str, Any]]
"""What the chunk stores of this process have done and are doing, as JSON values."""

SWITCH_INTERVAL = 0.0005
"""How long a thread may hold the interpreter while another waits, in seconds: the default of 5 ms is what a reader would
wait for while the event loop is busy."""


_log = logging.getLogger(__name__)


class _Replaceable(GivesOn):
    """A chunk store that can be exchanged for another while reads are under way; those end with the one they began with."""

    def __init__(self, store: ChunkStore) -> None:
        self._use(store)

    @property
    def name(self) -> str:
        """See `ChunkStore`, and so below."""
        return self._inner.name

    def get(self, wanted: Sequence[ChunkRef]) -> list[bytes]:
        return self._inner.get(wanted)

    def at_hand(self, wanted: Sequence[ChunkRef]) -> list[bytes] | None:
        return None if self._near is None else self._near.at_hand(wanted)

    def local(self, wanted: Sequence[ChunkRef]) -> list[bytes] | None:
        return None if self._near is None else self._near.local(wanted)

    def part(self, ref: ChunkRef, offset: int, length: int) -> bytes | None:
        return None if self._near is None else self._near.part(ref, offset, length)

    def has(self, digest: Digest) -> bool:
        return self._inner.has(digest)

    def close(self) -> None:
        self._inner.close()

    def replace(self, store: ChunkStore) -> None:
        """Read from `store` from now on, and close what was there; its last readers are still answered."""
        former = self._inner
        self._use(store)
        former.close()

    def _use(self, store: ChunkStore) -> None:
        self._near: AtHand | None = store if isinstance(store, AtHand) else None
        self._inner = store


class _Layer:
    """What one mount holds: its metadata and the tree over it, its chunk store, and its connection to give it back."""

    def __init__(self, add: AddMount, connection: Connection, trees: Trees, tree: Tree, store: ChunkStore) -> None:
        self.add = add
        self.connection = connection
        self.tree = tree
        self.store = _Replaceable(store)
        self._trees = trees

    def close(self) -> None:
        self.store.close()  # first: it may ask the tree what the layer has
        self._trees.close(self.tree)
        self.connection.close()


class Worker:
    """Serves the mounts that daemons add over connections to `listener`, with chunks from stores that `make_store` makes."""

    def __init__(
        self,
        listener: socket.socket,
        make_store: MakeStore,
        identity: str = "",
        report: Report = dict,
        processors: Processors | None = None,
    ) -> None:
        """`identity` is told to daemons, which compare it with what they would start now. `report` adds what the factory of
        stores has to tell to the answer to ``stats``. `processors`: what may be kept awake, the caller's to close."""
        self._listener = listener
        self._make_store = make_store
        self._identity = identity
        self._report = report
        self._control: socket.socket | None = None
        self._trees = Trees()
        self._layers: dict[str, _Layer] = {}
        self._send_lock = threading.Lock()
        self._failures = FailureReporter(self._emit)
        self._events = ThreadPoolExecutor(1, "events")  # a daemon that does not listen must not stop the event loop
        keep_awake = None if processors is None else processors.keep_awake
        self._server = Server(self._on_ready, self._on_gone, keep_awake)
        self._pidfd = os.pidfd_open(os.getpid())
        self._changed = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopped = False
        self._loop = threading.Thread(target=self._server.run, name="fuse")

    def run(self) -> None:
        """Serve until a daemon says stop, or until none is there and the last mount is gone."""
        self._loop.start()
        try:
            while not self._stopped and self._next():
                pass
        finally:
            self._server.stop()
            self._loop.join()
            self._failures.close()
            self._events.shutdown()
            if self._control is not None:
                self._control.close()
            os.close(self._changed)
            os.close(self._pidfd)

    def _next(self) -> bool:
        """Wait for a message, a daemon, or the end of a mount, and act on it; whether there is a reason to go on."""
        # One daemon after the other: what the one before had sent comes first.
        source = self._control or self._listener
        poll = select.poll()
        poll.register(source, select.POLLIN)
        poll.register(self._changed, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(None if self._control or self._server.names() else 0)}
        if self._changed in ready:
            os.eventfd_read(self._changed)
        if source.fileno() not in ready:
            return bool(self._control or self._server.names())
        if self._control is None:
            self._control = self._listener.accept()[0]
            return True
        try:
            received = messages.receive(self._control)
        except InvalidError as error:
            self._send(messages.error_message(None, error))
            return True
        if received is None:
            with self._send_lock:
                self._control.close()
                self._control = None
        else:
            self._answer(*received)
        return True

    def _answer(self, message: Message, fds: list[int]) -> None:
        seq = message.get("seq")
        given: list[int] = []
        try:
            result = self._do(message, fds, given)
        except Exception as error:
            self._send(messages.error_message(seq, error))
        else:
            self._send({"re": seq, **result}, tuple(given))
        finally:
            messages.close_all(fds)

    def _do(self, message: Message, fds: list[int], given: list[int]) -> Message:
        """Act on a request, and say what to answer. `fds` that are kept are taken out; `given` are to be sent."""
        match message.get("do"):
            case "hello":
                mounts = tuple(self._server.names())
                given.append(self._pidfd)
                return workerproto.hello_message(Hello(workerproto.PROTOCOL, self._identity, os.getpid(), mounts))
            case "descriptors":
                layer = self._layer(message)
                given += layer.connection.fds
                return workerproto.add_message(layer.add)
            case "add":
                add = workerproto.parse_add(message)
                taken = list(fds)
                fds.clear()
                return {"resent": self._add(add, Connection.of(taken))}
            case "remove":
                self._server.remove(str(message.get("mount_id")))
                self._layers.pop(str(message.get("mount_id")), None)
                return {}
            case "update":
                self._update(self._layer(message), message.get("store"))
                return {}
            case "ping":
                return {"alive": self._server.comes_round(BEAT_TIMEOUT)}
            case "stats":
                return {**self._report(), "mounts": self._server.names(), "cached": self._trees.cached}
            case "stop":
                self._stopped = True
                return {}
            case other:
                raise InvalidError(f"unknown request {other!r} to a mount worker")

    def _layer(self, message: Message) -> _Layer:
        layer = self._layers.get(str(message.get("mount_id")))
        if layer is None:
            raise NotFoundError(f"mount {message.get('mount_id')} is not being served")
        return layer

    def _add(self, add: AddMount, connection: Connection) -> bool:
        try:
            if add.mount_id in self._layers:
                raise AlreadyExistsError(f"mount {add.mount_id} is being served already")
            layer = self._open(add, connection)
        except BaseException:
            connection.close()
            raise
        try:
            journal = Journal(os.dup(connection.memory))
        except BaseException:
            layer.close()
            raise
        agreed = journal.negotiated
        session = Session(layer.tree, layer.store, functools.partial(self._on_failure, layer), agreed)
        self._layers[add.mount_id] = layer
        resent = self._server.add(add.mount_id, os.dup(connection.fuse), session, journal, owned=layer)
        if agreed is not None:  # else it follows INIT
            self._on_ready(add.mount_id, session)
        return resent

    def _update(self, layer: _Layer, store: object) -> None:
        if not isinstance(store, dict):
            raise InvalidError(f"mount {layer.add.mount_id}: a store is described by an object, not by {store!r}")
        layer.store.replace(self._make_store(store, layer.tree.verity))
        layer.add = dataclasses.replace(layer.add, store=store)

    def _open(self, add: AddMount, connection: Connection) -> _Layer:
        tree = self._trees.open(Path(add.metadata), add.name, as_layer=add.as_layer)
        try:
            return _Layer(add, connection, self._trees, tree, self._make_store(add.store, tree.verity))
        except BaseException:
            self._trees.close(tree)
            raise

    def _on_ready(self, mount_id: str, session: Session) -> None:
        agreed = session.negotiated
        refused = None if session.refused is None else str(session.refused)
        values = None if agreed is None else (agreed.minor, agreed.flags, agreed.kernel_flags)
        self._events.submit(self._emit, Ready(mount_id, values, refused))

    def _on_gone(self, mount_id: str) -> None:
        self._layers.pop(mount_id, None)
        self._events.submit(self._emit, Gone(mount_id))
        os.eventfd_write(self._changed, 1)

    def _on_failure(self, layer: _Layer, failure: Failure) -> None:
        self._failures.report(layer.add.name, layer.tree, failure)

    def _emit(self, event: Event) -> None:
        if not self._send(workerproto.event_message(event)) and isinstance(event, FailureReport):
            _log.error("%s", event)  # what the daemon would do, which is away

    def _send(self, message: Message, fds: tuple[int, ...] = ()) -> bool:
        """Whether a daemon is there to hear it; that none is, is no reason to stop serving."""
        with self._send_lock, contextlib.suppress(OSError):
            if self._control is not None:
                messages.send(self._control, message, fds)
                return True
        return False


def main(
    make_store: MakeStore,
    arguments: Sequence[str] | None = None,
    report: Report = dict,
    processors: Processors | None = None,
) -> int:
    """Run a worker; the body of an entry module. Returns the exit status."""
    parser = argparse.ArgumentParser(description="PuzzleFS mount worker; started by puzzlefs-snapshotter, not by hand")
    parser.add_argument("--socket-fd", type=int, required=True, help="descriptor of the socket to listen on")
    parser.add_argument("--identity", default="", help="what to tell a daemon that asks what this worker was started from")
    options, _ = parser.parse_known_args(arguments)
    # A Ctrl-C meant for the daemon must not take the containers' file systems along.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_INTERVAL)
    # What is decoded and cached has no cycles: looking for some every 700 objects took a twentieth of a walk's time.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    with socket.socket(fileno=options.socket_fd) as listener:
        Worker(listener, make_store, options.identity, report, processors).run()
    return 0
