"""The mount worker process: gets mounts from the daemon and serves them, whatever becomes of the daemon.

The process is started with one end of a socket (``--socket-fd``). When the daemon goes away it serves on until the last mount
is gone, since containers stand on it. It knows no way to make a chunk store: an entry module of the daemon's passes one
to `main`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import mmap
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from snapshotter.chunkstore.base import ChunkRef, ChunkStore
from snapshotter.errors import CorruptError, InvalidError, NotFoundError
from snapshotter.format.digest import Digest
from snapshotter.format.rootfs import Rootfs
from snapshotter.mount import workerproto
from snapshotter.mount.failures import FailureReporter
from snapshotter.mount.server import Server
from snapshotter.mount.session import Failure, Session
from snapshotter.mount.tree import Tree, new_cache
from snapshotter.mount.wire import Negotiated
from snapshotter.mount.workerproto import AddMount, Event, Gone, Message, Ready

MakeStore = Callable[[Mapping[str, Any]], ChunkStore]
"""Makes the chunk store of one mount from the `store` of its `AddMount`. What mounts share is the factory's to keep."""

SWITCH_INTERVAL = 0.0005
"""How long a thread may hold the interpreter while another waits, in seconds: the default of 5 ms is what a reader would
wait for while the event loop is busy."""


class _Replaceable:
    """A chunk store that can be exchanged for another while reads are under way; those end with the one they began with."""

    def __init__(self, store: ChunkStore) -> None:
        self._store = store

    @property
    def name(self) -> str:
        """See `ChunkStore`, and so below."""
        return self._store.name

    def get(self, wanted: Sequence[ChunkRef]) -> list[bytes]:
        return self._store.get(wanted)

    def has(self, digest: Digest) -> bool:
        return self._store.has(digest)

    def close(self) -> None:
        self._store.close()

    def replace(self, store: ChunkStore) -> None:
        """Read from `store` from now on. What was there is left to its last reader: it holds nothing that must be closed."""
        self._store = store


class _Layer:
    """What one mount holds: the tree over its metadata's map, and its chunk store."""

    def __init__(self, add: AddMount, tree: Tree, store: ChunkStore, mapped: mmap.mmap) -> None:
        self.add = add
        self.tree = tree
        self.store = _Replaceable(store)
        self._mapped = mapped

    def close(self) -> None:
        self.tree.close()
        self.store.close()
        # A view of the map may live on in a cache of this process; then it goes with the last one.
        with contextlib.suppress(BufferError):
            self._mapped.close()


class Worker:
    """Serves the mounts that the daemon adds over `sock`, with chunks from stores that `make_store` makes."""

    def __init__(self, sock: socket.socket, make_store: MakeStore) -> None:
        self._sock = sock
        self._make_store = make_store
        self._cache = new_cache()
        self._layers: dict[str, _Layer] = {}
        self._send_lock = threading.Lock()
        self._failures = FailureReporter(self._emit)
        self._events = ThreadPoolExecutor(1, "events")  # a daemon that does not listen must not stop the event loop
        self._server = Server(self._on_ready, self._on_gone)
        self._changed = threading.Condition()
        self._stopped = False
        self._loop = threading.Thread(target=self._server.run, name="fuse")

    def run(self) -> None:
        """Serve until the daemon says stop, or until it is gone and so is the last mount."""
        self._loop.start()
        try:
            while (received := self._receive()) is not None:
                message, fds = received
                self._answer(message, fds)
                if self._stopped:
                    break
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or not self._server.names())
        finally:
            self._server.stop()
            self._loop.join()
            self._failures.close()
            self._events.shutdown()

    def _receive(self) -> tuple[Message, list[int]] | None:
        while True:
            try:
                return workerproto.receive(self._sock)
            except InvalidError as error:
                self._send(workerproto.error_message(None, error))

    def _answer(self, message: Message, fds: list[int]) -> None:
        seq = message.get("seq")
        try:
            result = self._do(message, fds)
        except Exception as error:
            self._send(workerproto.error_message(seq, error))
        else:
            self._send({"re": seq, **result})
        finally:
            for fd in fds:
                os.close(fd)

    def _do(self, message: Message, fds: list[int]) -> Message:
        match message.get("do"):
            case "add":
                if len(fds) != 1:
                    raise InvalidError(f"a mount comes with one descriptor, not {len(fds)}")
                return {"resent": self._add(workerproto.parse_add(message), fds.pop())}
            case "remove":
                self._server.remove(str(message.get("mount_id")))
                self._layers.pop(str(message.get("mount_id")), None)
                return {}
            case "update":
                self._update(str(message.get("mount_id")), message.get("store"))
                return {}
            case "stats":
                return {"mounts": self._server.names(), "cached": self._cache.weight}
            case "stop":
                self._stopped = True
                return {}
            case other:
                raise InvalidError(f"unknown request {other!r} to a mount worker")

    def _add(self, add: AddMount, fd: int) -> bool:
        try:
            layer = self._open(add)
        except BaseException:
            os.close(fd)
            raise
        negotiated = Negotiated(*add.negotiated) if add.negotiated is not None else None
        self._layers[add.mount_id] = layer
        session = Session(layer.tree, layer.store, functools.partial(self._on_failure, layer), negotiated)
        try:
            return self._server.add(add.mount_id, fd, session, owned=layer, takeover=add.takeover)
        except BaseException:
            self._layers.pop(add.mount_id, None)
            os.close(fd)
            layer.close()
            raise

    def _update(self, mount_id: str, store: object) -> None:
        layer = self._layers.get(mount_id)
        if layer is None:
            raise NotFoundError(f"mount {mount_id} is not being served")
        if not isinstance(store, dict):
            raise InvalidError(f"mount {mount_id}: a store is described by an object, not by {store!r}")
        layer.store.replace(self._make_store(store))

    def _open(self, add: AddMount) -> _Layer:
        try:
            with open(add.metadata, "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as error:
            raise NotFoundError(f"metadata of {add.name}: {error}") from error
        except ValueError as error:  # mmap's word for an empty file
            raise CorruptError(f"metadata of {add.name}: {add.metadata} is empty") from error
        try:
            tree = Tree(Rootfs.open(mapped), as_layer=add.as_layer, cache=self._cache)
            return _Layer(add, tree, self._make_store(add.store), mapped)
        except BaseException:
            with contextlib.suppress(BufferError):
                mapped.close()
            raise

    def _on_ready(self, mount_id: str, session: Session) -> None:
        agreed = session.negotiated
        refused = None if session.refused is None else str(session.refused)
        values = None if agreed is None else (agreed.minor, agreed.flags, agreed.kernel_flags)
        self._events.submit(self._emit, Ready(mount_id, values, refused))

    def _on_gone(self, mount_id: str) -> None:
        self._layers.pop(mount_id, None)
        self._events.submit(self._emit, Gone(mount_id))
        with self._changed:
            self._changed.notify_all()

    def _on_failure(self, layer: _Layer, failure: Failure) -> None:
        self._failures.report(layer.add.name, layer.tree, failure)

    def _emit(self, event: Event) -> None:
        self._send(workerproto.event_message(event))

    def _send(self, message: Message) -> None:
        # Nobody there to hear it is no reason to stop serving.
        with self._send_lock, contextlib.suppress(OSError):
            workerproto.send(self._sock, message)


def main(make_store: MakeStore, arguments: Sequence[str] | None = None) -> int:
    """Run a worker; the body of an entry module. Returns the exit status."""
    parser = argparse.ArgumentParser(description="PuzzleFS mount worker; started by puzzlefs-snapshotter, not by hand")
    parser.add_argument("--socket-fd", type=int, required=True, help="descriptor of the socket to the daemon")
    options, _ = parser.parse_known_args(arguments)
    # A Ctrl-C meant for the daemon must not take the containers' file systems along.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_INTERVAL)
    with socket.socket(fileno=options.socket_fd) as sock:
        Worker(sock, make_store).run()
    return 0
