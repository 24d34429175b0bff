"""What a daemon has from the one before it: workers that are found by their sockets, and connections that say what they are."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from snapshotter.errors import InvalidError, PuzzlefsError, UnavailableError
from snapshotter.mount import processes, workerproto
from snapshotter.mount.connection import Connection
from snapshotter.mount.workerclient import KIND, WorkerClient
from snapshotter.mount.workerproto import AddMount, Event, Hello

_LAYER = "layer"

_log = logging.getLogger(__name__)


@dataclass
class Mount:
    """A mount: where it is, its connection, and what its worker is told, if that is known.

    `ready`: INIT is done, or `refused` says why there will be none. `claimed`: somebody has asked for it since the start.
    `detached`: it is taken off, and may have users still.
    """

    ident: str
    name: str
    mountpoint: Path
    connection: Connection
    add: AddMount | None
    ready: threading.Event = field(default_factory=threading.Event)
    refused: PuzzlefsError | None = None
    claimed: bool = False
    detached: bool = False


@dataclass(frozen=True, slots=True)
class FoundWorker:
    """A worker that an earlier daemon started: what it says of itself, and its mounts with what it was told of each.

    The connections are whose who has this.
    """

    client: WorkerClient
    hello: Hello
    mounts: Sequence[tuple[str, AddMount | None, Connection]]

    def is_of(self, identity: str) -> bool:
        """Whether it is what would be started now."""
        return (self.hello.protocol, self.hello.identity) == (workerproto.PROTOCOL, identity)


def find_workers(
    directory: Path, on_event: Callable[[Event], None], on_exit: Callable[[int], Callable[[int | None], None]]
) -> list[FoundWorker]:
    """The workers whose sockets are in `directory`; `on_exit(n)` hears of the end of the n-th. One that is stuck is killed."""
    found: list[FoundWorker] = []
    for path in processes.sockets(directory, KIND):
        try:
            client, hello = WorkerClient.find(path, on_event, on_exit(len(found)))
        except (UnavailableError, InvalidError) as error:
            _log.info("no mount worker to go on with: %s", error)
            processes.kill_by(path)
            path.unlink(missing_ok=True)
            continue
        mounts = []
        for ident in hello.mounts:
            try:
                mounts.append((ident, *client.held(ident)))
            except PuzzlefsError as error:
                _log.warning("mount worker %d does not give mount %s: %s", client.pid, ident, error)
        found.append(FoundWorker(client, hello, mounts))
    return found


def label(name: str, mountpoint: Path) -> Mapping[str, str]:
    """What is written into the memory of a layer's mount, for the next daemon."""
    return {"kind": _LAYER, "name": name, "mountpoint": str(mountpoint)}


def is_layer(connection: Connection) -> bool:
    """Whether this is a layer's, and not one that the daemon itself serves."""
    try:
        return connection.state().label.get("kind") == _LAYER
    except InvalidError:
        return False


def adopted(ident: str, connection: Connection, add: AddMount | None) -> Mount | None:
    """The mount of an earlier daemon, to go on with; None where it is gone, or says nothing that can be understood."""
    if connection.is_gone():
        return None
    try:
        state = connection.state()
        mount = Mount(ident, state.label["name"], Path(state.label["mountpoint"]), connection, add)
    except (InvalidError, KeyError) as error:
        _log.warning("mount %s of an earlier daemon cannot be gone on with: %s", ident, error)
        return None
    if add is not None and state.negotiated is not None:
        mount.ready.set()
    return mount
