"""The snapshots' rows in SQLite: what containerd's ``snapshots/storage`` is to its snapshotters.

Pure bookkeeping: no directory, no mount, no network. `MetaStore.write` is one transaction at a time, `MetaStore.read` a
consistent view beside it (WAL); both are meant to be short, and nobody may walk a disk or wait for anything inside.
Rules that a row must keep are checked here, with containerd's categories of error (``storage/bolt.go``).
"""

from __future__ import annotations

import itertools
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from snapshotter.errors import (
    AlreadyExistsError,
    CorruptError,
    FailedPreconditionError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from snapshotter.format.digest import Digest
from snapshotter.snapshots import migrations
from snapshotter.snapshots.model import REF_LABEL, Hint, Info, Kind, Layer, Link, Row, Usage

HINTS_MAX = 16
"""Most hints kept for one layer; the oldest go."""

PAGE = 256
"""Rows that List reads in one transaction."""

_SELECT = """
SELECT s.id, s.name, ifnull(p.name, ''), s.kind, s.labels, s.created, s.updated, s.layer, s.diff_id, s.chain_id, s.parent,
       s.size, s.inodes
FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent
"""

_CHAIN = """
WITH RECURSIVE up (id, parent, layer, diff_id, depth) AS (
    SELECT id, parent, layer, diff_id, 0 FROM snapshots WHERE id = ?
    UNION ALL
    SELECT s.id, s.parent, s.layer, s.diff_id, up.depth + 1 FROM snapshots s JOIN up ON s.id = up.parent
)
SELECT id, layer, diff_id FROM up ORDER BY depth
"""


def _row(values: Any) -> Row:
    ident, name, parent, kind, labels, created, updated, layer, diff_id, chain_id, parent_id, size, inodes = values
    info = Info(str(name), str(parent), Kind(kind), json.loads(str(labels)), created, updated)
    usage = None if size is None else Usage(size, inodes)
    return Row(ident, info, Layer(layer), diff_id, chain_id, parent_id, usage)


def _dump(labels: Mapping[str, str]) -> str:
    return json.dumps(labels, sort_keys=True)


def stored_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """`labels` without those of empty value, which containerd's stores drop too (``boltutil.WriteLabels``)."""
    return {key: value for key, value in labels.items() if value}


class Reader:
    """The questions that can be asked inside a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    def find(self, name: str) -> Row | None:
        """The snapshot with this key or name, if there is one."""
        values = self._db.execute(_SELECT + "WHERE s.name = ?", (name,)).fetchone()
        return None if values is None else _row(values)

    def get(self, name: str) -> Row:
        """The snapshot with this key or name.

        Raises:
            NotFoundError: there is none.
        """
        row = self.find(name)
        if row is None:
            raise NotFoundError(f"snapshot {name!r} does not exist")
        return row

    def numbered(self, ident: int) -> Row:
        """The snapshot with this number.

        Raises:
            NotFoundError: there is none.
        """
        values = self._db.execute(_SELECT + "WHERE s.id = ?", (ident,)).fetchone()
        if values is None:
            raise NotFoundError(f"snapshot number {ident} does not exist")
        return _row(values)

    def parent(self, name: str) -> Row | None:
        """The snapshot `name` as a parent for another; None for the empty name.

        Raises:
            NotFoundError: there is no such snapshot.
            InvalidError: it is not committed.
        """
        if not name:
            return None
        row = self.find(name)
        if row is None:
            raise NotFoundError(f"parent snapshot {name!r} does not exist")
        if row.info.kind is not Kind.COMMITTED:
            raise InvalidError(f"parent snapshot {name!r} is not committed")
        return row

    def chain(self, ident: int | None) -> list[Link]:
        """The snapshot with the number `ident` and its ancestors, itself first; empty for None."""
        if ident is None:
            return []
        return [Link(i, Layer(layer), diff_id) for i, layer, diff_id in self._db.execute(_CHAIN, (ident,))]

    def lazy(self, chain_id: Digest, parent_id: int | None) -> Row | None:
        """The lazy layer with this chain ID on this parent, if it is recorded; of several the oldest."""
        query = _SELECT + "WHERE s.chain_id = ? AND s.parent IS ? AND s.kind = ? ORDER BY s.id LIMIT 1"
        values = self._db.execute(query, (chain_id, parent_id, Kind.COMMITTED)).fetchone()
        return None if values is None else _row(values)

    def page(self, after: int, *, name: str | None = None, parent: str | None = None, ref: str | None = None) -> list[Row]:
        """Up to `PAGE` snapshots with a number above `after`, by number; where given, only those with this `name`,
        `parent` name (empty: without one) and ``containerd.io/snapshot.ref`` label `ref`."""
        where: list[str] = ["s.id > ?"]
        values: list[object] = [after]
        for condition, value in (("s.name = ?", name), ("ifnull(p.name, '') = ?", parent), ("s.ref = ?", ref)):
            if value is not None:
                where.append(condition)
                values.append(value)
        query = f"{_SELECT} WHERE {' AND '.join(where)} ORDER BY s.id LIMIT {PAGE}"
        return [_row(found) for found in self._db.execute(query, values)]

    def ids(self) -> set[int]:
        """The numbers of the snapshots that own a directory: all but committed lazy layers."""
        query = "SELECT id FROM snapshots WHERE layer = ? OR kind != ?"
        return {ident for (ident,) in self._db.execute(query, (Layer.ORDINARY, Kind.COMMITTED))}

    def hints(self, diff_id: Digest) -> list[Hint]:
        """How the lazy layer `diff_id` was asked for, latest first."""
        query = "SELECT annotations, image, namespace FROM hints WHERE diff_id = ? ORDER BY id DESC"
        return [Hint(json.loads(notes), image, ns) for notes, image, ns in self._db.execute(query, (diff_id,))]

    def hinted(self) -> set[Digest]:
        """The metadata layers that somebody asked for."""
        return {diff_id for (diff_id,) in self._db.execute("SELECT DISTINCT diff_id FROM hints")}

    def annotations(self) -> list[Mapping[str, str]]:
        """The annotations of all metadata layers, in all forms in which somebody asked for them."""
        return [json.loads(text) for (text,) in self._db.execute("SELECT DISTINCT annotations FROM hints")]

    def diff_ids(self) -> set[Digest]:
        """The metadata layers that some snapshot uses."""
        query = "SELECT DISTINCT diff_id FROM snapshots WHERE layer = ?"
        return {diff_id for (diff_id,) in self._db.execute(query, (Layer.METADATA,))}

    def orphans(self) -> set[Digest]:
        """The metadata layers that no snapshot uses any more (or never did)."""
        query = "SELECT DISTINCT diff_id FROM hints WHERE diff_id NOT IN (SELECT diff_id FROM snapshots WHERE layer = ?)"
        return {diff_id for (diff_id,) in self._db.execute(query, (Layer.METADATA,))}


class Writer(Reader):
    """The changes that can be made inside a writing transaction."""

    def __init__(self, connection: sqlite3.Connection, numbers: Iterator[int]) -> None:
        super().__init__(connection)
        self._numbers = numbers

    def insert(self, name: str, parent: str, kind: Kind, labels: Mapping[str, str]) -> Row:
        """A new ordinary snapshot.

        Raises:
            AlreadyExistsError: the name is taken.
            NotFoundError, InvalidError: as `parent`.
        """
        above = self.parent(parent)
        self._must_be_free(name)
        self._insert(name, None if above is None else above.id, kind, labels)
        return self.get(name)

    def insert_lazy(
        self, prefix: str, parent_id: int | None, layer: Layer, diff_id: Digest, chain_id: Digest, labels: Mapping[str, str]
    ) -> Row:
        """A new committed snapshot for a lazy layer, named after `prefix`, its own number and its chain ID."""
        ident = self._insert("", parent_id, Kind.COMMITTED, labels, layer, diff_id, chain_id)
        # containerd's own names end in a key or a chain ID alone, so that this one stays free for ever.
        name = f"{prefix}puzzlefs-{ident} sha256:{chain_id.hex()}"
        self._db.execute("UPDATE snapshots SET name = ? WHERE id = ?", (name, ident))
        return self.get(name)

    def commit(self, name: str, key: str, labels: Mapping[str, str], parent: str) -> Row:
        """The active snapshot `key`, committed under `name` with exactly `labels`; `parent` as `insert`, for one that has none.

        Raises:
            AlreadyExistsError: `name` is taken.
            NotFoundError: there is no `key`, or no `parent`.
            FailedPreconditionError: `key` is not active, or `parent` not committed; or it is a lazy layer, whose parent stands.
            InvalidError: it has another parent already.
        """
        self._must_be_free(name)
        row = self.get(key)
        if row.info.kind is not Kind.ACTIVE:
            raise FailedPreconditionError(f"snapshot {key!r} cannot be committed: it is not active")
        parent_id = row.parent_id
        if parent and parent != row.info.parent:
            if row.info.parent:
                raise InvalidError(f"snapshot {key!r} has the parent {row.info.parent!r}, it cannot be committed on {parent!r}")
            if row.layer is not Layer.ORDINARY:
                raise FailedPreconditionError(f"snapshot {key!r} is a PuzzleFS layer without a parent, it cannot get one")
            try:
                above = self.parent(parent)
            except InvalidError as error:
                raise FailedPreconditionError(str(error)) from error
            parent_id = None if above is None else above.id
        kept, now = stored_labels(labels), time.time_ns()
        self._db.execute(
            "UPDATE snapshots SET name = ?, parent = ?, kind = ?, labels = ?, ref = ?, created = ?, updated = ? WHERE id = ?",
            (name, parent_id, Kind.COMMITTED, _dump(kept), kept.get(REF_LABEL), now, now, row.id),
        )
        return self.get(name)

    def mark(self, ident: int, layer: Layer, diff_id: Digest, chain: Digest) -> Row:
        """The active snapshot with this number, which is from now on the lazy layer `diff_id` on its parent.

        Raises:
            NotFoundError: it is gone.
            FailedPreconditionError: it is not active, or another layer already.
        """
        row = self.numbered(ident)
        if row.info.kind is not Kind.ACTIVE:
            raise FailedPreconditionError(f"snapshot {row.info.name!r} cannot become a layer: it is not active")
        if row.layer is not Layer.ORDINARY and (row.layer, row.diff_id) != (layer, diff_id):
            raise FailedPreconditionError(f"snapshot {row.info.name!r} is another PuzzleFS layer already")
        self._db.execute(
            "UPDATE snapshots SET layer = ?, diff_id = ?, chain_id = ? WHERE id = ?", (layer, diff_id, chain, ident)
        )
        return self.numbered(ident)

    def remove(self, name: str) -> Row:
        """Delete the row; what it was is answered.

        Raises:
            NotFoundError: there is none.
            FailedPreconditionError: it has children.
        """
        row = self.get(name)
        child = self._db.execute("SELECT name FROM snapshots WHERE parent = ? LIMIT 1", (row.id,)).fetchone()
        if child is not None:
            raise FailedPreconditionError(f"cannot remove snapshot {name!r}: {child[0]!r} stands on it")
        self._db.execute("DELETE FROM snapshots WHERE id = ?", (row.id,))
        return row

    def set_labels(self, name: str, labels: Mapping[str, str]) -> Row:
        """Replace all labels.

        Raises:
            NotFoundError: there is no such snapshot.
        """
        kept = stored_labels(labels)
        self._db.execute(
            "UPDATE snapshots SET labels = ?, ref = ?, updated = ? WHERE name = ?",
            (_dump(kept), kept.get(REF_LABEL), time.time_ns(), name),
        )
        return self.get(name)

    def set_usage(self, ident: int, usage: Usage) -> None:
        """Keep what was measured for the committed snapshot with this number, if it is still there."""
        query = "UPDATE snapshots SET size = ?, inodes = ? WHERE id = ? AND kind = ?"
        self._db.execute(query, (usage.size, usage.inodes, ident, Kind.COMMITTED))

    def remember(self, diff_id: Digest, hint: Hint) -> None:
        """Keep `hint` as the latest for the layer `diff_id`."""
        self.forget(diff_id, hint)
        self._db.execute(
            "INSERT INTO hints (diff_id, annotations, image, namespace) VALUES (?, ?, ?, ?)",
            (diff_id, _dump(hint.annotations), hint.image, hint.namespace),
        )
        self._db.execute(
            "DELETE FROM hints WHERE diff_id = ? AND id NOT IN "
            "(SELECT id FROM hints WHERE diff_id = ? ORDER BY id DESC LIMIT ?)",
            (diff_id, diff_id, HINTS_MAX),
        )

    def forget(self, diff_id: Digest, hint: Hint | None = None) -> None:
        """Drop one hint of the layer `diff_id`, or all of them."""
        if hint is None:
            self._db.execute("DELETE FROM hints WHERE diff_id = ?", (diff_id,))
        else:
            self._db.execute(
                "DELETE FROM hints WHERE diff_id = ? AND annotations = ? AND image IS ? AND namespace = ?",
                (diff_id, _dump(hint.annotations), hint.image, hint.namespace),
            )

    def _must_be_free(self, name: str) -> None:
        if self._db.execute("SELECT 1 FROM snapshots WHERE name = ?", (name,)).fetchone() is not None:
            raise AlreadyExistsError(f"snapshot {name!r} already exists")

    def _insert(
        self,
        name: str,
        parent_id: int | None,
        kind: Kind,
        labels: Mapping[str, str],
        layer: Layer = Layer.ORDINARY,
        diff_id: Digest | None = None,
        chain_id: Digest | None = None,
    ) -> int:
        kept, now = stored_labels(labels), time.time_ns()
        ident = next(self._numbers)
        self._db.execute(
            "INSERT INTO snapshots (id, name, parent, kind, layer, diff_id, chain_id, labels, ref, created, updated) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (ident, name, parent_id, kind, layer, diff_id, chain_id, _dump(kept), kept.get(REF_LABEL), now, now),
        )
        return ident


class MetaStore:
    """The database at `path`, made if it is not there, brought up to date if it is older (`migrations`).

    Threads may share one; processes may not.

    Raises:
        CorruptError: what is there is not a database of ours.
        FailedPreconditionError: a newer release wrote it.
        UnavailableError: it cannot be opened or written now.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._write_lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._idle_lock = threading.Lock()
        self._closed = False
        with self._errors():
            self._writer = self._connect()
            self._writer.execute("PRAGMA journal_mode = WAL")
            # FULL: containerd has what it recorded about a snapshot on disk when it goes on, so must we.
            self._writer.execute("PRAGMA synchronous = FULL")
            migrations.bring_up(self._writer, path)
            # AUTOINCREMENT takes a number back when a transaction is undone, whose directory may still be there then.
            (last,) = self._writer.execute("SELECT ifnull(max(seq), 0) FROM sqlite_sequence").fetchone()
            self._numbers = itertools.count(last + 1)

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """A consistent view. Keep it short: the log cannot be folded into the database meanwhile."""
        with self._errors():
            connection = self._borrow()
            try:
                connection.execute("BEGIN")
                yield Reader(connection)
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                self._give_back(connection)

    @contextmanager
    def write(self) -> Iterator[Writer]:
        """A transaction that no other writer is beside; kept when the block ends, undone when it raises."""
        with self._write_lock, self._errors():
            self._must_be_open()
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield Writer(self._writer, self._numbers)
                self._writer.execute("COMMIT")
            finally:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")

    def close(self) -> None:
        """Close every connection; harmless when done twice."""
        with self._write_lock, self._idle_lock:
            if not self._closed:
                self._closed = True
                for connection in [*self._idle, self._writer]:
                    connection.close()
                self._idle.clear()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=10, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def _borrow(self) -> sqlite3.Connection:
        with self._idle_lock:
            self._must_be_open()
            if self._idle:
                return self._idle.pop()
        return self._connect()

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._idle_lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def _must_be_open(self) -> None:
        if self._closed:
            raise UnavailableError(f"{self._path} is closed: the snapshotter is shutting down")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise UnavailableError(f"{self._path} cannot be used now: {error}") from error
        except sqlite3.IntegrityError as error:
            raise FailedPreconditionError(f"{self._path} refused a change: {error}") from error
        except sqlite3.DatabaseError as error:
            raise CorruptError(f"{self._path} is damaged or no database: {error}") from error
