"""The layer store as the daemon runs it: mounted, served, and with layers of its own.

Its connection is held like those of layers (`keeping`): podman fails, whatever its command, where a layer store's directory is
a dead mount. While no daemon runs, whoever looks into it waits for the next one.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from snapshotter.daemon.keeping import Held
from snapshotter.daemon.store.state import References
from snapshotter.daemon.store.tree import Images, StoreLayers, StoreTree
from snapshotter.errors import FailedPreconditionError, InvalidError, PuzzlefsError
from snapshotter.format.annotations import MetadataLayer
from snapshotter.format.digest import Digest, to_text
from snapshotter.mount import mounting
from snapshotter.mount.connection import Connection
from snapshotter.mount.journal import Journal
from snapshotter.mount.virtual import VirtualServer, VirtualSession

_KIND = "layer-store"
_FLAGS = mounting.MS_NOSUID | mounting.MS_NODEV | mounting.MS_NOEXEC

_log = logging.getLogger(__name__)


class RestorableLayers(StoreLayers, Protocol):
    """Layers that can be mounted again at a start."""

    def restore(self, layers: Iterable[tuple[MetadataLayer, str | None]]) -> Mapping[Digest, PuzzlefsError]:
        """See `snapshots.lazy.LazyLayers`."""
        ...


@contextlib.contextmanager
def serving(mountpoint: Path, known: References, images: Images, layers: RestorableLayers, held: Held) -> Iterator[StoreTree]:
    """The store at `mountpoint`, served for as long as the block lasts; the mount outlives it.

    Layers with users are mounted when the block begins, from what is on this node; what cannot be is noted in the tree.

    Raises:
        FailedPreconditionError: something else is mounted there, or it cannot be a mountpoint.
        UnsupportedError: the kernel does not mount it.
    """
    tree = StoreTree(known, images, layers, known.root.with_name("nothing"))
    _restore(tree, known, layers)
    connection = _connection(mountpoint, held)
    journal = Journal(os.dup(connection.memory))
    session = VirtualSession(tree, lambda what, error: _log.error("layer store, %s: %s", what, error), journal.negotiated)
    server = VirtualServer(connection.fuse, journal, session)
    server.start()
    try:
        yield tree
    finally:
        server.stop()


def take_off(held: Held) -> None:
    """Unmount the store of an earlier daemon, where this one is to have none."""
    found = held.take(_KIND)
    if found is None:
        return
    with contextlib.suppress(KeyError, PuzzlefsError):
        mounting.unmount(Path(found.state().label["mountpoint"]))
    held.release(_KIND)


def _restore(tree: StoreTree, known: References, layers: RestorableLayers) -> None:
    for diff_id, error in layers.restore(known.used()).items():
        _log.error("layer %s of the layer store is not mounted: %s", to_text(diff_id), error)
        tree.note_failed(diff_id, error)
    for layer, times in known.repeated():
        if layer.diff_id in tree.failed:
            continue
        try:
            layers.ensure_copies(layer.diff_id, times - 1)
        except PuzzlefsError as error:
            _log.error("layer %s of the layer store is not mounted %d times: %s", to_text(layer.diff_id), times, error)
            tree.note_failed(layer.diff_id, error)


def _connection(mountpoint: Path, held: Held) -> Connection:
    """The store's connection, mounted at `mountpoint`: an earlier daemon's, or a new one."""
    found = held.take(_KIND)
    if found is not None:
        if _is_usable(found, mountpoint):
            return found
        held.release(_KIND)
    _clear(mountpoint)
    connection = Connection.open({"kind": _KIND, "mountpoint": str(mountpoint)})
    try:
        mounting.mount(connection.fuse, mountpoint, "puzzlefs-store", _FLAGS)
    except BaseException:
        connection.close()
        raise
    held.hold(_KIND, connection)
    return connection


def _is_usable(connection: Connection, mountpoint: Path) -> bool:
    try:
        there = connection.state().label.get("mountpoint") == str(mountpoint)
    except InvalidError:
        return False
    info = mounting.find(mountpoint)
    return there and not connection.is_gone() and info is not None and info.fs_type == mounting.FS_TYPE


def _clear(mountpoint: Path) -> None:
    """Make `mountpoint` a directory that nothing is mounted on, if what is mounted there is ours."""
    found = mounting.find(mountpoint)
    if found is None:
        mountpoint.mkdir(mode=0o755, parents=True, exist_ok=True)
    elif found.fs_type == mounting.FS_TYPE:
        mounting.unmount(mountpoint)
    else:
        raise FailedPreconditionError(f"{mountpoint}: {found.source} ({found.fs_type}) is mounted there: choose another place")
