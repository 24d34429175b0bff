"""State of older releases is taken over whole; state of newer ones is refused with what to do."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from snapshotter import __version__
from snapshotter.errors import FailedPreconditionError
from snapshotter.format.digest import sha256
from snapshotter.snapshots import migrations, tables
from snapshotter.snapshots.metastore import MetaStore
from snapshotter.snapshots.model import Kind, Layer

HERE = Path(__file__).parent


def stored(version: int, path: Path) -> Path:
    """A database as an older release left it."""
    with closing(sqlite3.connect(path)) as db:
        db.executescript((HERE / f"schema-{version}.sql").read_text())
    return path


def schema(path: Path) -> list[tuple[str, str]]:
    """The definitions, without the words."""
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()
    return [(name, re.sub(r"\s+", "", re.sub(r"--.*", "", sql))) for name, sql in rows]


def rows(path: Path, table: str) -> list[object]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()


@pytest.mark.parametrize("version", range(1, tables.VERSION))
def test_every_older_version_becomes_what_a_new_one_is(version: int, tmp_path: Path) -> None:
    old = stored(version, tmp_path / "old")
    before = {table: rows(old, table) for table in ("snapshots", "hints")}
    MetaStore(old).close()
    MetaStore(tmp_path / "new").close()
    assert schema(old) == schema(tmp_path / "new")
    assert {table: rows(old, table) for table in ("snapshots", "hints")} == before
    assert [row[:2] for row in rows(old, "history")] == [(tables.VERSION, __version__)]  # type: ignore[index]


def test_what_the_first_release_recorded_is_all_there(tmp_path: Path) -> None:
    store = MetaStore(stored(1, tmp_path / "db"))
    with closing(store), store.read() as rx:
        infos = {row.info.name: row for row in rx.page(0)}
        diff_id = sha256(b"layer one")
        assert [row.layer for row in infos.values()] == [Layer.METADATA, Layer.PACK, *[Layer.ORDINARY] * 3]
        assert infos["default/4/committed"].info.labels == {"c": "ü"}
        assert infos["default/5/container"].info.kind is Kind.ACTIVE
        assert [link.layer for link in rx.chain(infos["default/5/container"].id)] == [
            Layer.ORDINARY,
            Layer.ORDINARY,
            Layer.PACK,
            Layer.METADATA,
        ]
        (hint,) = rx.hints(diff_id)
        assert (hint.image, hint.namespace) == ("registry.example/app:1", "default")
        assert hint.annotations["containerd.io/snapshot/puzzlefs.metadata"] == "sha256:" + sha256(b"m").hex()


def test_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    """A number that was given out may name a directory that is still to be deleted."""
    store = MetaStore(stored(1, tmp_path / "db"))
    with closing(store), store.write() as tx:
        assert tx.insert("next", "", Kind.ACTIVE, {}).id == 6


def test_the_state_before_is_kept_for_the_way_back(tmp_path: Path) -> None:
    path = stored(1, tmp_path / "metadata.db")
    before = rows(path, "snapshots")
    MetaStore(path).close()
    copy = tmp_path / "metadata.db.v1"
    assert copy.stat().st_mode & 0o777 == 0o600
    assert rows(copy, "snapshots") == before
    with closing(sqlite3.connect(copy)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)


def test_a_step_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stored(1, tmp_path / "metadata.db")
    before = schema(path)
    monkeypatch.setattr(migrations, "STEPS", {1: migrations.STEPS[1] + "CREATE TABLE snapshots (x);\n"})
    with pytest.raises(Exception, match="already exists"):
        MetaStore(path)
    assert schema(path) == before
    monkeypatch.undo()
    MetaStore(path).close()


def test_a_step_that_was_interrupted_is_done_again(tmp_path: Path) -> None:
    path = stored(1, tmp_path / "metadata.db")
    (tmp_path / "metadata.db.copying").write_bytes(b"half a copy")
    MetaStore(path).close()
    assert not (tmp_path / "metadata.db.copying").exists()


def test_an_older_release_says_which_one_to_install_and_what_going_back_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stored(1, tmp_path / "metadata.db")
    monkeypatch.setattr(migrations, "__version__", "9.9")
    MetaStore(path).close()
    monkeypatch.setattr(migrations, "__version__", "0.1.0")
    monkeypatch.setattr(tables, "VERSION", 1)
    with pytest.raises(FailedPreconditionError, match=r"release 9\.9; this is 0\.1\.0.* `mv .*metadata\.db\.v1"):
        MetaStore(path)


def test_what_nobody_knows_is_refused(tmp_path: Path) -> None:
    MetaStore(tmp_path / "db").close()
    for version, words in ((99, "a newer one|install that release"), (-1, "cannot go on")):
        with closing(sqlite3.connect(tmp_path / "db")) as db:
            db.execute(f"PRAGMA user_version = {version}")
        with pytest.raises(FailedPreconditionError, match=words):
            MetaStore(tmp_path / "db")
