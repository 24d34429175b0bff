"""The rows: what may be recorded, in which order, and what survives."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snapshotter.errors import (
    AlreadyExistsError,
    CorruptError,
    FailedPreconditionError,
    InvalidError,
    NotFoundError,
    PuzzlefsError,
    UnavailableError,
)
from snapshotter.format.digest import sha256
from snapshotter.snapshots.metastore import HINTS_MAX, PAGE, MetaStore
from snapshotter.snapshots.model import REF_LABEL, Hint, Kind, Layer, Link, Usage

A, B = sha256(b"a"), sha256(b"b")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MetaStore]:
    opened = MetaStore(tmp_path / "metadata.db")
    yield opened
    opened.close()


def committed(store: MetaStore, name: str, parent: str = "") -> int:
    with store.write() as tx:
        tx.insert(name + "-key", parent, Kind.ACTIVE, {})
        return tx.commit(name, name + "-key", {}, "").id


def test_a_snapshot_is_what_was_said_about_it(store: MetaStore) -> None:
    with store.write() as tx:
        made = tx.insert("key", "", Kind.ACTIVE, {"a": "1", "empty": "", "odd\0key": "ü\0"})
    with store.read() as rx:
        row = rx.get("key")
    assert row == made
    assert row.info.labels == {"a": "1", "odd\0key": "ü\0"}
    assert (row.info.name, row.info.parent, row.info.kind) == ("key", "", Kind.ACTIVE)
    assert row.info.created == row.info.updated
    assert (row.layer, row.usage) == (Layer.ORDINARY, None)


def test_commit_keeps_the_number_and_replaces_labels_and_times(store: MetaStore) -> None:
    with store.write() as tx:
        before = tx.insert("key", "", Kind.ACTIVE, {"old": "1"})
        after = tx.commit("name", "key", {"new": "2"}, "")
        assert tx.find("key") is None
    assert after.id == before.id
    assert after.info.labels == {"new": "2"}
    assert after.info.created >= before.info.created
    assert after.info.created == after.info.updated


def test_what_insert_refuses(store: MetaStore) -> None:
    committed(store, "base")
    with store.write() as tx:
        tx.insert("key", "base", Kind.ACTIVE, {})
        with pytest.raises(AlreadyExistsError):
            tx.insert("key", "", Kind.VIEW, {})
        with pytest.raises(AlreadyExistsError):
            tx.insert("base", "", Kind.VIEW, {})
        with pytest.raises(NotFoundError):
            tx.insert("other", "nothing", Kind.ACTIVE, {})
        with pytest.raises(InvalidError, match="not committed"):
            tx.insert("other", "key", Kind.ACTIVE, {})


def test_what_commit_refuses(store: MetaStore) -> None:
    committed(store, "base")
    committed(store, "other")
    with store.write() as tx:
        tx.insert("key", "base", Kind.ACTIVE, {})
        tx.insert("view", "base", Kind.VIEW, {})
        for name, key, parent, error in [
            ("base", "key", "", AlreadyExistsError),
            ("key", "key", "", AlreadyExistsError),
            ("new", "nothing", "", NotFoundError),
            ("new", "view", "", FailedPreconditionError),
            ("new", "base", "", FailedPreconditionError),
            ("new", "key", "other", InvalidError),
        ]:
            with pytest.raises(error):
                tx.commit(name, key, {}, parent)
        assert tx.commit("new", "key", {}, "base").info.parent == "base"


def test_commit_can_give_a_parent_to_a_snapshot_without_one(store: MetaStore) -> None:
    base = committed(store, "base")
    with store.write() as tx:
        tx.insert("key", "", Kind.ACTIVE, {})
        tx.insert("active", "", Kind.ACTIVE, {})
        with pytest.raises(NotFoundError):
            tx.commit("new", "key", {}, "nothing")
        with pytest.raises(FailedPreconditionError, match="not committed"):
            tx.commit("new", "key", {}, "active")
        row = tx.commit("new", "key", {}, "base")
        assert row.info.parent == "base"
        assert tx.chain(row.id) == [Link(row.id, Layer.ORDINARY, None), Link(base, Layer.ORDINARY, None)]


def test_remove_needs_a_leaf(store: MetaStore) -> None:
    committed(store, "base")
    with store.write() as tx:
        tx.insert("key", "base", Kind.VIEW, {})
        with pytest.raises(FailedPreconditionError, match="cannot remove"):
            tx.remove("base")
        tx.remove("key")
        tx.remove("base")
        with pytest.raises(NotFoundError):
            tx.remove("base")


def test_a_number_is_never_used_again(tmp_path: Path) -> None:
    store = MetaStore(tmp_path / "db")
    numbers = [committed(store, "a")]
    with store.write() as tx:
        tx.remove("a")
    numbers.append(committed(store, "b"))

    class Undone(Exception):  # noqa: N818
        pass

    def undo() -> None:
        with store.write() as tx:
            numbers.append(tx.insert("c", "", Kind.VIEW, {}).id)
            raise Undone

    with pytest.raises(Undone):
        undo()
    numbers.append(committed(store, "c"))
    with store.write() as tx:
        tx.remove("c")
    store.close()
    store = MetaStore(tmp_path / "db")
    numbers.append(committed(store, "d"))
    store.close()
    assert numbers == sorted(set(numbers))


def test_a_transaction_that_raises_leaves_nothing(store: MetaStore) -> None:
    with pytest.raises(AlreadyExistsError), store.write() as tx:  # noqa: PT012
        tx.insert("a", "", Kind.VIEW, {})
        tx.insert("a", "", Kind.VIEW, {})
    with store.read() as rx:
        assert rx.find("a") is None


def test_readers_see_the_state_before_a_transaction_that_is_under_way(store: MetaStore) -> None:
    with store.write() as tx:
        tx.insert("a", "", Kind.VIEW, {})
        with store.read() as rx:
            assert rx.find("a") is None
    with store.read() as rx:
        assert rx.find("a") is not None


def test_writers_take_turns(store: MetaStore) -> None:
    barrier = threading.Barrier(8)

    def add(number: int) -> None:
        barrier.wait()
        for turn in range(5):
            with store.write() as tx:
                tx.insert(f"{number}-{turn}", "", Kind.VIEW, {})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    with store.read() as rx:
        assert len(rx.ids()) == 40


def test_pages_hold_everything_once_and_what_is_asked_for(store: MetaStore) -> None:
    committed(store, "base")
    with store.write() as tx:
        for number in range(PAGE + 5):
            tx.insert(f"k{number}", "base" if number % 2 else "", Kind.VIEW, {REF_LABEL: f"r{number % 3}"} if number else {})
    with store.read() as rx:
        first = rx.page(0)
        rest = rx.page(first[-1].id)
        assert [row.info.name for row in first + rest] == ["base", *(f"k{number}" for number in range(PAGE + 5))]
        assert [row.info.name for row in rx.page(0, name="k3")] == ["k3"]
        assert all(row.info.parent == "base" for row in rx.page(0, parent="base"))
        assert [row.info.name for row in rx.page(0, parent="", ref="r1")][:2] == ["k4", "k10"]
        assert len(rx.page(0, parent="base")) == (PAGE + 5) // 2


def test_set_labels_keeps_the_index_of_references_true(store: MetaStore) -> None:
    with store.write() as tx:
        tx.insert("a", "", Kind.VIEW, {REF_LABEL: "old"})
        row = tx.set_labels("a", {REF_LABEL: "new", "gone": ""})
        assert row.info.labels == {REF_LABEL: "new"}
        assert row.info.updated >= row.info.created
        assert [row.info.name for row in tx.page(0, ref="new")] == ["a"]
        assert tx.page(0, ref="old") == []
        with pytest.raises(NotFoundError):
            tx.set_labels("b", {})


def test_usage_is_kept_for_committed_snapshots_alone(store: MetaStore) -> None:
    ident = committed(store, "base")
    with store.write() as tx:
        active = tx.insert("a", "", Kind.ACTIVE, {})
        tx.set_usage(ident, Usage(7, 8))
        tx.set_usage(active.id, Usage(7, 8))
        assert tx.get("base").usage == Usage(7, 8)
        assert tx.get("a").usage is None


def test_a_lazy_layer_has_a_name_of_its_own_and_the_oldest_answers_for_its_chain(store: MetaStore) -> None:
    base = committed(store, "base")
    with store.write() as tx:
        row = tx.insert_lazy("ns/1/", base, Layer.METADATA, A, B, {"l": "1"})
        assert row.info.name == f"ns/1/puzzlefs-{row.id} sha256:{B.hex()}"
        assert (row.info.parent, row.info.kind, row.layer, row.diff_id, row.chain_id) == ("base", Kind.COMMITTED, 1, A, B)
        assert tx.lazy(B, base) == row
        assert tx.lazy(B, None) is None
        assert tx.diff_ids() == {A}
        tx.insert_lazy("ns/2/", base, Layer.METADATA, A, B, {})
        assert tx.lazy(B, base) == row
        other = tx.insert_lazy("ns/2/", None, Layer.METADATA, A, B, {})
        assert tx.lazy(B, None) == other


def test_an_active_snapshot_becomes_a_layer_and_stays_one(store: MetaStore) -> None:
    base = committed(store, "base")
    with store.write() as tx:
        ident = tx.insert("key", "base", Kind.ACTIVE, {}).id
        row = tx.mark(ident, Layer.METADATA, A, B)
        assert (row.layer, row.diff_id, row.chain_id, row.info.kind) == (Layer.METADATA, A, B, Kind.ACTIVE)
        assert tx.mark(ident, Layer.METADATA, A, B) == row
        assert tx.lazy(B, base) is None, "only a committed one answers for its chain"
        assert ident in tx.ids(), "it owns its directory until it is committed"
        with pytest.raises(FailedPreconditionError, match="another"):
            tx.mark(ident, Layer.METADATA, B, B)
        with pytest.raises(FailedPreconditionError, match="not active"):
            tx.mark(base, Layer.METADATA, A, B)
        with pytest.raises(NotFoundError):
            tx.mark(10**6, Layer.METADATA, A, B)
        tx.commit("name", "key", {}, "")
        assert tx.lazy(B, base) == tx.get("name")
        assert ident not in tx.ids()


def test_a_layer_on_nothing_gets_no_parent_at_commit(store: MetaStore) -> None:
    committed(store, "base")
    with store.write() as tx:
        tx.mark(tx.insert("key", "", Kind.ACTIVE, {}).id, Layer.METADATA, A, A)
    with pytest.raises(FailedPreconditionError, match="without a parent"), store.write() as tx:
        tx.commit("name", "key", {}, "base")


def test_hints_are_kept_latest_first_once_each_and_bounded(store: MetaStore) -> None:
    with store.write() as tx:
        for number in [*range(HINTS_MAX + 3), 5]:
            tx.remember(A, Hint({"n": str(number)}, "image" if number % 2 else None, "ns"))
        kept = [int(hint.annotations["n"]) for hint in tx.hints(A)]
        assert kept == [5, *(n for n in range(HINTS_MAX + 2, 2, -1) if n != 5)]
        assert tx.orphans() == {A}
        tx.forget(A, Hint({"n": "5"}, "image", "ns"))
        assert len(tx.hints(A)) == HINTS_MAX - 1
        tx.insert_lazy("", None, Layer.METADATA, A, A, {})
        assert tx.orphans() == set()
        tx.forget(A)
        assert tx.hints(A) == []


def test_what_was_recorded_is_there_after_a_restart(tmp_path: Path) -> None:
    first = MetaStore(tmp_path / "db")
    committed(first, "base")
    first.close()
    first.close()
    second = MetaStore(tmp_path / "db")
    with second.read() as rx:
        assert rx.get("base").info.kind is Kind.COMMITTED
    second.close()
    with pytest.raises(UnavailableError, match="shutting down"), second.read():
        pass


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"something else entirely" * 100)
    with pytest.raises(CorruptError, match="damaged"):
        MetaStore(tmp_path / "db")


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(PuzzlefsError, match="cannot be used"):
        MetaStore(tmp_path / "missing" / "db")
