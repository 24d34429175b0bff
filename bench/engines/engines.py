"""Ways to have a tree mounted, each for a while, each served by a process of its own where it is served by one."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

from bench.engines.workload import Workload
from snapshotter.daemon import worker_main
from snapshotter.daemon.config import Config
from snapshotter.daemon.sources import LayerSource
from snapshotter.mount import mounting
from snapshotter.mount.connection import Connection
from snapshotter.mount.workerclient import WorkerClient
from snapshotter.mount.workerproto import AddMount, Event, Ready
from tests.support.processes import CommandError, Service, run
from tests.support.snapshotter import program
from tests.support.upstream import PROGRAM

_NOWHERE = LayerSource((), ("registry.invalid/nothing/is/fetched:1",))


@dataclass(frozen=True, slots=True)
class Mounted:
    """A tree under `path`, served by the process `pid`, None where the kernel alone does it."""

    path: Path
    pid: int | None


@dataclass(frozen=True, slots=True)
class Engine:
    """A way to mount a workload on a new directory. `skips`: tasks that it is not asked to do, as they would take minutes."""

    name: str
    mounted: Callable[[Workload, Path], AbstractContextManager[Mounted]]
    skips: frozenset[str] = frozenset()


@contextlib.contextmanager
def native(work: Workload, point: Path) -> Iterator[Mounted]:
    """The directory itself."""
    yield Mounted(work.tree, None)


@contextlib.contextmanager
def worker(work: Workload, point: Path, *, mounts: int = 1, alike: bool = True) -> Iterator[Mounted]:
    """The daemon's own mount worker, with the chunk store chain that it has in use, over a cache that has every chunk.

    More `mounts` of the same tree lie beside `point`, numbered from 1; if they are not `alike`, each is a layer of its
    own, with metadata of its own.
    """
    events: Queue[Event] = Queue()
    sockets = point.with_suffix(".sockets")
    sockets.mkdir(mode=0o700)
    client = WorkerClient.start(worker_main.command(Config(root=work.cache_root), None), sockets, events.put)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, sockets)
        stack.callback(client.stop)
        for number in range(mounts):
            where = point if number == 0 else point.with_name(f"{point.name}{number}")
            where.mkdir()
            stack.callback(where.rmdir)
            connection = Connection.open({"mount": "bench"})
            stack.callback(connection.close)
            mounting.mount(connection.fuse, where, "bench")
            stack.callback(mounting.unmount, where)
            metadata = work.metadata if alike else Path(shutil.copy(work.metadata, sockets / f"metadata{number}"))
            client.add(AddMount(str(where), str(metadata), "bench", store=_NOWHERE.to_json()), connection)
            event = events.get(timeout=30)
            if not isinstance(event, Ready) or event.refused:
                raise CommandError(f"the mount worker answered {event}")
        yield Mounted(point, client.pid)


@contextlib.contextmanager
def pyfuse3(work: Workload, point: Path) -> Iterator[Mounted]:
    """``puzzlefs mount``."""
    with _served([program("puzzlefs"), "mount", "-f", "-o", "allow_other,dev,suid", work.image, point], point) as mounted:
        yield mounted


@contextlib.contextmanager
def squashfuse(work: Workload, point: Path) -> Iterator[Mounted]:
    """Debian's squashfuse."""
    with _served(["squashfuse", "-f", "-o", "allow_other", work.squashfs, point], point) as mounted:
        yield mounted


@contextlib.contextmanager
def upstream(work: Workload, point: Path) -> Iterator[Mounted]:
    """Upstream's program (`tests.support.upstream`), on the same image as ours."""
    with _served([PROGRAM, "mount", "-f", work.image, point], point) as mounted:
        yield mounted


@contextlib.contextmanager
def _served(command: list[str | Path], point: Path) -> Iterator[Mounted]:
    point.mkdir()
    service = Service(command, point.with_suffix(".log"))
    try:
        service.wait_until(lambda: mounting.find(point) is not None, "mounted")
        (point / "etc").stat()
        yield Mounted(point, service.pid)
    finally:
        if mounting.find(point) is not None:
            mounting.unmount(point)
        service.stop()
        point.rmdir()


@contextlib.contextmanager
def overlay(lower: Path, directory: Path) -> Iterator[Path]:
    """overlayfs with `lower` below a writable directory, as a container's root is."""
    for name in ("upper", "work", "root"):
        (directory / name).mkdir(parents=True)
    options = f"lowerdir={lower},upperdir={directory}/upper,workdir={directory}/work,index=off"
    run("mount", "-t", "overlay", "overlay", "-o", options, directory / "root")
    try:
        yield directory / "root"
    finally:
        run("umount", directory / "root")
        shutil.rmtree(directory)
