"""The snapshotter: containerd's snapshot semantics over rows, directories and lazily mounted layers.

For ordinary snapshots it behaves as containerd's overlayfs snapshotter does, and shows the same mounts. What it adds is
`Snapshotter.prepare` with the labels of a PuzzleFS layer, which is answered by a committed snapshot at once (`pull`).

Rows come first: a directory is put in place inside the transaction that inserts its row, and deleted some time after the
one that deleted it (`Snapshotter.cleanup`). What a crash leaves is then a directory without a row, never the reverse.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from snapshotter import userns
from snapshotter.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidError,
    NotFoundError,
    PuzzlefsError,
    UnavailableError,
)
from snapshotter.format.annotations import MetadataLayer, PackLayer
from snapshotter.format.digest import Digest, to_text
from snapshotter.snapshots import disk, idmap, lazy, mounts, paths
from snapshotter.snapshots.filters import Filter
from snapshotter.snapshots.idmap import IdMap, ShiftedMounts
from snapshotter.snapshots.lazy import LazyLayers
from snapshotter.snapshots.metastore import PAGE, MetaStore
from snapshotter.snapshots.model import Info, Kind, Layer, Link, Mount, Row, Usage
from snapshotter.snapshots.pull import LazyChains

_LOG = logging.getLogger(__name__)

_LABELS = "labels"


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a start found: lazy layers that could not be mounted, and committed snapshots whose directory is gone."""

    failed: Mapping[Digest, PuzzlefsError]
    broken: Sequence[str]


class Snapshotter:
    """The snapshots below `root`, with lazy layers mounted by `layers`. Any number of threads may use it at once.

    `shifted`: shows layers with other owners to containers in user namespaces, whose snapshots have labels that say so
    (`idmap`). None where containerd does not leave that to us: then it has made a copy with those owners, and the labels say
    nothing new.

    `recover` comes first. Names, keys and parents are containerd's; an empty parent is none.

    Raises:
        FailedPreconditionError: the root is not safe, served by another process, or from another release.
        CorruptError, UnavailableError: the database cannot be read.
    """

    def __init__(self, root: Path, layers: LazyLayers, shifted: ShiftedMounts | None = None) -> None:
        self._paths = paths.prepare_root(root)
        self._lock = paths.lock_root(self._paths)
        try:
            self._store = MetaStore(self._paths.database)
        except BaseException:
            os.close(self._lock)
            raise
        self._layers = layers
        self._shifted = shifted
        self._chains = LazyChains(self._store, layers)
        self._options = mounts.overlay_options(userxattr=not userns.is_initial())
        self._cleaning = threading.Lock()
        self._broken: frozenset[int] = frozenset()
        self._closed = False

    def recover(self) -> Recovery:
        """Bring rows, directories and mounts into agreement after a start, before anybody is served; no network.

        Directories without a row are deleted, and so are active snapshots and views whose directory is gone. Committed
        ones without a directory are kept, because containerd knows them, and fail when they are to be mounted.
        """
        for path in paths.unfinished(self._paths):
            _remove(path)
        self.cleanup()
        with self._store.write() as tx:
            missing = tx.ids() - paths.numbered(self._paths)
            broken = []
            for ident in sorted(missing):
                info = tx.numbered(ident).info
                if info.kind is Kind.COMMITTED:
                    broken.append(info.name)
                else:
                    _LOG.error("snapshot %r has lost its directory and is removed", info.name)
                    tx.remove(info.name)
        for name in broken:
            _LOG.error("snapshot %r has lost its directory; what stands on it cannot be mounted", name)
        self._broken = frozenset(missing)
        return Recovery(self._chains.restore(), broken)

    def failed_layers(self) -> Mapping[Digest, PuzzlefsError]:
        """The layers that containers may need and that could not be mounted, and why."""
        return self._chains.failed

    def prepare(self, key: str, parent: str, labels: Mapping[str, str]) -> tuple[Mount, ...]:
        """A new active snapshot on `parent`, and its mounts.

        Raises:
            AlreadyExistsError: `key` is taken; or `labels` asked for a PuzzleFS layer, and its committed snapshot is there.
            NotFoundError, InvalidError: `parent` is none, or not committed; or the labels are wrong.
            FailedPreconditionError, UnavailableError, CorruptError: a layer cannot be had, or a directory is gone.
        """
        layer = lazy.requested(labels)
        if layer is not None:
            row = self._chains.prepare(key, parent, labels, layer)
            raise AlreadyExistsError(f"target snapshot is there as {row.info.name!r}")
        return self._create(Kind.ACTIVE, key, parent, labels)

    def view(self, key: str, parent: str, labels: Mapping[str, str]) -> tuple[Mount, ...]:
        """A new read-only snapshot of `parent`, and its mounts.

        Raises:
            AlreadyExistsError: `key` is taken.
            NotFoundError, InvalidError: `parent` is none, or not committed.
            FailedPreconditionError, UnavailableError, CorruptError: a layer cannot be had, or a directory is gone.
        """
        return self._create(Kind.VIEW, key, parent, labels)

    def mounts(self, key: str) -> tuple[Mount, ...]:
        """The mounts of the active snapshot or view `key`.

        Raises:
            NotFoundError: there is none.
            FailedPreconditionError: it is committed; or a directory of its chain is gone.
            UnavailableError, CorruptError, InvalidError: a layer of its chain cannot be had.
        """
        with self._store.read() as rx:
            row = rx.get(key)
            chain = rx.chain(row.id)
        if row.info.kind is Kind.COMMITTED:
            raise FailedPreconditionError(f"snapshot {key!r} has no mounts: it is not active, and no view")
        # one that the differ has taken for a layer shows it already
        below = self._lowers(chain[1:] if row.layer is Layer.ORDINARY else chain)
        return self._mounts(row, below, self._users(row.info.labels))

    def commit(self, name: str, key: str, labels: Mapping[str, str], parent: str = "") -> None:
        """Turn the active snapshot `key` into the committed one `name`, with exactly these labels.

        `parent` (containerd 2.2 and later) gives a parent to a snapshot that has none. Quick: nothing is measured here.

        Raises:
            AlreadyExistsError, NotFoundError, FailedPreconditionError, InvalidError: as `metastore.Writer.commit`.
            FailedPreconditionError: files were written into a snapshot that is a PuzzleFS layer.
        """
        with self._store.read() as rx:
            before = rx.find(key)
        if before is not None and before.diff_id is not None and not self._untouched(before.id):
            layer = to_text(before.diff_id)
            raise FailedPreconditionError(
                f"snapshot {key!r} is PuzzleFS layer {layer}, and files were written into it: it cannot be committed"
            )
        with self._store.write() as tx:
            row = tx.commit(name, key, labels, parent)
        self._hide([row.id])
        if row.layer is not Layer.ORDINARY:
            _remove(self._paths.directory(row.id))  # empty, and nobody's any more

    def adopt(self, found: Sequence[Mount], layer: MetadataLayer | PackLayer) -> bool:
        """Make an active snapshot the lazy layer `layer`: the one whose mounts are `found`.

        False where that cannot be: they are not ours, or there is something in it already, or the chain ID of its parent is
        unknown. Doing it twice is harmless.

        Raises:
            NotFoundError: the snapshot is gone.
            FailedPreconditionError: it is not active, or another layer.
            UnavailableError, CorruptError, InvalidError: the layer cannot be had.
        """
        upper = mounts.upper_of(found)
        ident = None if upper is None else self._paths.number_of(upper)
        return ident is not None and self._untouched(ident) and self._chains.adopt(ident, layer)

    def lent(self, layer: MetadataLayer, namespace: str) -> AbstractContextManager[Path]:
        """Where `layer` is mounted while the block lasts, as `pull.LazyChains.lent`."""
        return self._chains.lent(layer, namespace)

    def remove(self, key: str) -> None:
        """Forget a snapshot. Its key is free at once; its directory, or its layer's mount, goes at the next `cleanup`.

        Raises:
            NotFoundError: there is none.
            FailedPreconditionError: others stand on it.
        """
        with self._store.write() as tx:
            tx.remove(key)

    def stat(self, key: str) -> Info:
        """What is known about a snapshot.

        Raises:
            NotFoundError: there is none.
        """
        with self._store.read() as rx:
            return rx.get(key).info

    def update(self, name: str, labels: Mapping[str, str], fieldpaths: Sequence[str] = ()) -> Info:
        """Change labels: those that `fieldpaths` (``labels``, ``labels.KEY``) name, or all of them if it is empty.

        A label that is named and not given, or given empty, is taken away (``UpdateInfo`` in ``storage/bolt.go``).

        Raises:
            NotFoundError: there is no such snapshot.
            InvalidError: `fieldpaths` names something that cannot change.
        """
        with self._store.write() as tx:
            return tx.set_labels(name, updated_labels(name, tx.get(name).info.labels, labels, fieldpaths)).info

    def walk(self, filters: Sequence[str] = ()) -> Iterator[Info]:
        """The snapshots that any of `filters` wants, or all, in order of their creation.

        Read page by page: each one is there at most once, as it was when its page was read.

        Raises:
            InvalidError: a filter breaks the grammar (before anything is answered).
        """
        return self._walk(Filter(filters))

    def usage(self, key: str) -> Usage:
        """What a snapshot takes on disk: an active one its upper directory, as it is now; a committed one likewise,
        measured once; a PuzzleFS layer what its chunks take, those of the layers below it left out; a view nothing.

        Raises:
            NotFoundError: there is none, or a layer of it is not on this machine.
            FailedPreconditionError: its directory is gone.
        """
        with self._store.read() as rx:
            row = rx.get(key)
            chain = rx.chain(row.id)
        if row.layer is not Layer.ORDINARY and row.info.kind is Kind.COMMITTED:
            return self._chains.usage(chain)
        if row.info.kind is Kind.VIEW:
            return Usage()
        if row.usage is not None:
            return row.usage
        try:
            measured = disk.usage(self._paths.upper(row.id))
        except FileNotFoundError as error:
            raise self._gone(key) from error
        if row.info.kind is Kind.COMMITTED:
            with self._store.write() as tx:
                tx.set_usage(row.id, measured)
        return measured

    def cleanup(self) -> None:
        """Delete the directories and release the layers of snapshots that are gone. What cannot go now is logged and stays."""
        with self._cleaning:
            shown = self._shifted.shown() if self._shifted is not None else set()
            if shown:
                with self._store.read() as rx:
                    shown -= rx.ids()
                self._hide(sorted(shown))
            self._chains.collect()
            # Directories first, rows second and as a writer: whoever was between renaming a directory and keeping its row
            # has then kept it, or given up.
            there = paths.numbered(self._paths)
            with self._store.write() as tx:
                kept = tx.ids()
            for ident in sorted(there - kept):
                _remove(self._paths.directory(ident))

    def close(self) -> None:
        """Give up the database and the root; mounts stay. Harmless when done twice."""
        if not self._closed:
            self._closed = True
            self._store.close()
            os.close(self._lock)

    def _create(self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]) -> tuple[Mount, ...]:
        with self._store.read() as rx:
            if rx.find(key) is not None:
                raise AlreadyExistsError(f"snapshot {key!r} already exists")
            above = rx.parent(parent)
            chain = rx.chain(None if above is None else above.id)
        below = self._lowers(chain)
        users = self._users(labels)
        made: Path | None = None
        try:
            made = paths.make_snapshot(self._paths, work=kind is Kind.ACTIVE, owner=_owner(below, users))
            with self._store.write() as tx:
                row = tx.insert(key, parent, kind, labels)
                if chain and row.parent_id != chain[0].id:
                    raise NotFoundError(f"parent snapshot {parent!r} was replaced while {key!r} was made on it: try again")
                made = made.rename(self._paths.directory(row.id))
                paths.sync_directory(made)
                paths.sync_directory(self._paths.snapshots)
            made = None
        except OSError as error:
            raise UnavailableError(f"snapshot {key!r} cannot be made below {self._paths.snapshots}: {error}") from error
        finally:
            if made is not None:
                _remove(made)
        try:
            return self._mounts(row, below, users)
        except PuzzlefsError:
            self.remove(key)
            raise

    def _mounts(self, row: Row, below: Sequence[Path], users: IdMap | None) -> tuple[Mount, ...]:
        options = mounts.options_for(below, self._paths, self._options)
        if users is not None and self._shifted is not None:
            below = self._shifted.show(row.id, below, users)
        return mounts.derive(row.info.kind, row.id, below, self._paths, options)

    def _users(self, labels: Mapping[str, str]) -> IdMap | None:
        return None if self._shifted is None else idmap.of_labels(labels)

    def _hide(self, idents: Iterable[int]) -> None:
        if self._shifted is None:
            return
        for ident in idents:
            try:
                self._shifted.hide(ident)
            except PuzzlefsError as error:
                _LOG.warning("%s, it is tried again at the next clean-up", error)

    def _lowers(self, chain: Sequence[Link]) -> list[Path]:
        self._chains.require(chain)
        for link in chain:
            if link.id in self._broken:
                raise self._gone(f"number {link.id}")
        return mounts.lowers(chain, self._paths, self._layers.mountpoint)

    def _walk(self, wanted: Filter) -> Iterator[Info]:
        index, after = wanted.wanted, 0
        while True:
            with self._store.read() as rx:
                page = rx.page(after, name=index.name, parent=index.parent, ref=index.ref)
            yield from (row.info for row in page if wanted.matches(row.info))
            if len(page) < PAGE:
                return
            after = page[-1].id

    def _untouched(self, ident: int) -> bool:
        try:
            with os.scandir(self._paths.upper(ident)) as entries:
                return next(entries, None) is None
        except FileNotFoundError:
            return True

    def _gone(self, name: str) -> FailedPreconditionError:
        return FailedPreconditionError(
            f"the directory of snapshot {name} below {self._paths.snapshots} is gone: remove the image and pull it again"
        )


def updated_labels(name: str, old: Mapping[str, str], new: Mapping[str, str], fieldpaths: Sequence[str]) -> Mapping[str, str]:
    """The labels of the snapshot `name` after an Update.

    Raises:
        InvalidError: a path leads to something else.
    """
    labels = dict(old) if fieldpaths else dict(new)
    for path in fieldpaths:
        if path == _LABELS:
            labels = dict(new)
        elif path.startswith(_LABELS + "."):
            key = path[len(_LABELS) + 1 :]
            labels[key] = new.get(key, "")
        else:
            raise InvalidError(f"cannot update {path!r} of snapshot {name!r}: only labels can change")
    return labels


def _owner(below: Sequence[Path], users: IdMap | None) -> tuple[int, int] | None:
    """The owner of the topmost lower directory, as the container sees it: overlayfs shows the upper one's as that of the
    container's root."""
    owner = None
    if below:
        status = os.stat(below[0])
        owner = status.st_uid, status.st_gid
    return owner if users is None else users.owner(*(owner or (0, 0)))


def _remove(path: Path) -> None:
    try:
        disk.remove_tree(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        _LOG.warning("%s could not be deleted, it is tried again at the next clean-up: %s", path, error)
