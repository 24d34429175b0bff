"""From the tables of an older release to those of this one, step by step, all or nothing.

``user_version`` says which tables are there. Before anything is changed the database is copied beside itself
(``metadata.db.v<version>``), for those who must go back: an older release refuses what it does not know.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from snapshotter import __version__
from snapshotter.errors import FailedPreconditionError
from snapshotter.snapshots import tables

STEPS: Mapping[int, str] = {
    1: """
-- A client that unpacks without labels commits a chain under a name of its own: it may be there several times.
DROP INDEX snapshots_chain;
CREATE INDEX snapshots_chain ON snapshots (chain_id, parent) WHERE chain_id IS NOT NULL AND kind = 3;
CREATE TABLE history (version INTEGER NOT NULL, program TEXT NOT NULL, at INTEGER NOT NULL);
""",
}
"""By ``user_version``, what makes the tables of the next one. Never changed once released."""

_log = logging.getLogger(__name__)


def bring_up(db: sqlite3.Connection, path: Path) -> None:
    """Make the tables of this release in the database `db`, which is the file `path`; `db` has no transaction open.

    Raises:
        FailedPreconditionError: it is of a newer release, or too old.
        sqlite3.Error: it cannot be read or written.
    """
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version == tables.VERSION:
        return
    if version == 0:
        _change(db, tables.DEFINITION)
        return
    if version > tables.VERSION:
        raise FailedPreconditionError(_newer(db, path, version))
    if version not in STEPS:
        raise FailedPreconditionError(f"{path} has schema version {version}, from which this release cannot go on")
    copy = _copy(db, path, version)
    _change(db, "".join(STEPS[step] for step in range(version, tables.VERSION)))
    _log.info("%s was brought from schema version %d to %d; as it was it is %s", path, version, tables.VERSION, copy)


def _change(db: sqlite3.Connection, script: str) -> None:
    db.execute("BEGIN IMMEDIATE")
    try:
        for statement in _statements(script):
            db.execute(statement)
        db.execute("INSERT INTO history (version, program, at) VALUES (?, ?, ?)", (tables.VERSION, __version__, time.time_ns()))
        db.execute(f"PRAGMA user_version = {tables.VERSION}")
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _statements(script: str) -> Iterator[str]:
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""


def _copy(db: sqlite3.Connection, path: Path, version: int) -> Path:
    copy, temporary = path.with_name(f"{path.name}.v{version}"), path.with_name(f"{path.name}.copying")
    temporary.unlink(missing_ok=True)
    db.execute("VACUUM INTO ?", (str(temporary),))
    descriptor = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o600)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.rename(copy)
    return copy


def _newer(db: sqlite3.Connection, path: Path, version: int) -> str:
    """What a release that is older than the database says: which one to install, or what going back costs."""
    try:
        (program,) = db.execute("SELECT program FROM history ORDER BY version DESC LIMIT 1").fetchone()
    except (sqlite3.Error, TypeError):
        program = "a newer one"
    known = f"this is {__version__}, which knows {tables.VERSION}"
    text = f"{path} has schema version {version}, written by release {program}; {known}"
    copy = path.with_name(f"{path.name}.v{tables.VERSION}")
    if copy.exists():
        return (
            f"{text}: install that release again, or go back to the state before it by `mv {copy} {path}` "
            f"and `rm -f {path}-wal {path}-shm`, which loses every image and container made since"
        )
    return f"{text}: install that release again"
