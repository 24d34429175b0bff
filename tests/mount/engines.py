"""Mounts an image directory (see `source`) by one engine or the other, served by a process of its own."""

from __future__ import annotations

import contextlib
import json
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from snapshotter.mount import mounting
from snapshotter.mount.connection import Connection
from snapshotter.mount.workerclient import WorkerClient
from snapshotter.mount.workerproto import AddMount, Event, FailureReport, Ready

HERE = Path(__file__).parent
WORKER = (sys.executable, str(HERE / "worker_entry.py"))
PATIENCE = 20
LABEL = {"mount": "test"}


@dataclass
class Mounted:
    """A mount under test: where it is, and what it reported as (path, error)."""

    path: Path
    failures: queue.Queue[tuple[str, str]] = field(default_factory=queue.Queue)

    def failure(self) -> tuple[str, str]:
        """The next reported failure."""
        return self.failures.get(timeout=PATIENCE)


class Engine(Protocol):
    """Mounts images."""

    def mounted(self, image: Path, mountpoint: Path, *, as_layer: bool = False) -> contextlib.AbstractContextManager[Mounted]:
        """`image` on the new directory `mountpoint` for a while."""
        ...


class Daemon:
    """What the daemon does about mounts and one worker: opens, mounts, hands over, listens."""

    def __init__(self) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self.ended = threading.Event()
        self.directory = Path(tempfile.mkdtemp(prefix="workers-"))
        self.worker = self.start_worker()
        self.connections: dict[Path, Connection] = {}
        self.ready: dict[str, Ready] = {}

    def mount(self, image: Path, mountpoint: Path, *, as_layer: bool = False) -> None:
        mountpoint.mkdir(parents=True)
        connection = self.connections[mountpoint] = Connection.open(LABEL)
        mounting.mount(connection.fuse, mountpoint, "test")
        self.worker.add(self.description(image, mountpoint, as_layer=as_layer), connection)
        event = self.event()
        assert isinstance(event, Ready), event
        assert event.refused is None
        self.ready[event.mount_id] = event

    def description(self, image: Path, mountpoint: Path, *, as_layer: bool = False) -> AddMount:
        return AddMount(
            mount_id=str(mountpoint),
            metadata=str(image / "metadata"),
            name=f"layer of {image.name}",
            as_layer=as_layer,
            store={"chunks": str(image / "chunks")},
        )

    def event(self) -> Event:
        return self.events.get(timeout=PATIENCE)

    def unmount(self, mountpoint: Path) -> None:
        mounting.unmount(mountpoint)
        self.connections.pop(mountpoint).close()

    def replace_worker(self) -> None:
        self.worker.kill()
        assert self.ended.wait(PATIENCE)
        self.ended.clear()
        self.worker = self.start_worker()

    def start_worker(self) -> WorkerClient:
        return WorkerClient.start(WORKER, self.directory, self.events.put, lambda status: self.ended.set())

    def close(self) -> None:
        for mountpoint in list(self.connections):
            self.unmount(mountpoint)
        self.worker.stop()
        shutil.rmtree(self.directory)


class Native:
    """The daemon's engine, in a worker."""

    @contextlib.contextmanager
    def mounted(self, image: Path, mountpoint: Path, *, as_layer: bool = False) -> Iterator[Mounted]:
        daemon = Daemon()
        mounted = Mounted(mountpoint)
        stop = threading.Event()

        def listen() -> None:
            while not stop.is_set():
                with contextlib.suppress(queue.Empty):
                    event = daemon.events.get(timeout=0.1)
                    if isinstance(event, FailureReport):
                        mounted.failures.put((event.path, event.error))

        listener = threading.Thread(target=listen)
        try:
            daemon.mount(image, mountpoint, as_layer=as_layer)
            listener.start()
            yield mounted
        finally:
            daemon.close()
            stop.set()
            if listener.ident is not None:
                listener.join()


class Libfuse:
    """The engine of ``puzzlefs mount``."""

    @contextlib.contextmanager
    def mounted(self, image: Path, mountpoint: Path, *, as_layer: bool = False) -> Iterator[Mounted]:
        mountpoint.mkdir(parents=True)
        mounted = Mounted(mountpoint)
        command = [sys.executable, str(HERE / "libfuse_entry.py"), str(image), str(mountpoint)]
        process = subprocess.Popen(
            [*command, "as_layer" if as_layer else "whole", "allow_other,dev,suid"], stdout=subprocess.PIPE, encoding="utf-8"
        )
        assert process.stdout is not None
        output = process.stdout
        assert output.readline() == "ready\n"

        def listen() -> None:
            for line in output:
                report = json.loads(line)
                mounted.failures.put((report["path"], report["error"]))

        listener = threading.Thread(target=listen)
        listener.start()
        try:
            yield mounted
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
            listener.join()
            output.close()


ENGINES: dict[str, Engine] = {"native": Native(), "pyfuse3": Libfuse()}
