"""Calls about the same keys at the same time, each order forced: nobody gets what another made, and nothing stays behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from snapshotter.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError, PuzzlefsError
from snapshotter.format.digest import to_text
from snapshotter.snapshots import paths
from snapshotter.snapshots.lazy import IMAGE_LABEL
from snapshotter.snapshots.model import Kind
from snapshotter.snapshots.snapshotter import Snapshotter
from tests.support.layers import DirectoryLayers, chains, labels_of, metadata
from tests.support.sequencer import Sequencer

ONE, TWO = metadata("one"), metadata("two")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as made:
        yield made


@pytest.fixture
def order() -> Sequencer:
    return Sequencer()


def outcome(call: Future[Any]) -> type[PuzzlefsError] | None:
    """How a call ended."""
    error = call.exception(60)
    assert error is None or isinstance(error, PuzzlefsError), error
    return None if error is None else type(error)


def at(
    monkeypatch: pytest.MonkeyPatch, name: str, *, before: Callable[[], None] = lambda: None, after: Callable[[], None]
) -> None:
    """Have things happen before and after the first call of a function of `paths`; it is put back then."""
    real = getattr(paths, name)

    def seam(*arguments: Any, **more: Any) -> Any:
        monkeypatch.setattr(paths, name, real)
        before()
        answer = real(*arguments, **more)
        after()
        return answer

    monkeypatch.setattr(paths, name, seam)


def directories(tmp_path: Path) -> int:
    return len(os.listdir(tmp_path / "root" / "s"))


def base(snapshotter: Snapshotter, name: str = "base") -> str:
    snapshotter.prepare(f"{name}-key", "", {})
    snapshotter.commit(name, f"{name}-key", {})
    return name


def test_two_prepares_of_one_key(
    snapshotter: Snapshotter, pool: ThreadPoolExecutor, order: Sequencer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both find the key free; the one whose row comes second gets nothing, and its directory goes."""
    at(monkeypatch, "make_snapshot", after=lambda: (order.reach(0), order.reach(2))[1])
    slow = pool.submit(snapshotter.prepare, "key", "", {})
    with order.step(1):
        snapshotter.prepare("key", "", {"winner": "yes"})
    assert outcome(slow) is AlreadyExistsError
    assert snapshotter.stat("key").labels == {"winner": "yes"}
    assert directories(tmp_path) == 1


@pytest.mark.parametrize("again", [False, True], ids=["removed", "replaced"])
def test_a_parent_that_goes_while_a_snapshot_is_made_on_it(
    snapshotter: Snapshotter,
    pool: ThreadPoolExecutor,
    order: Sequencer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    again: bool,
) -> None:
    """Also if another one of the same name is there by then: the directory was made for the first."""
    base(snapshotter)
    at(monkeypatch, "make_snapshot", after=lambda: (order.reach(0), order.reach(2))[1])
    slow = pool.submit(snapshotter.prepare, "key", "base", {})
    with order.step(1):
        snapshotter.remove("base")
        if again:
            base(snapshotter)
    assert outcome(slow) is NotFoundError
    snapshotter.cleanup()
    assert directories(tmp_path) == (1 if again else 0)


def test_a_clean_up_beside_a_prepare(
    snapshotter: Snapshotter, pool: ThreadPoolExecutor, order: Sequencer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It sees the directory before the row is kept, and leaves it alone."""
    at(monkeypatch, "sync_directory", after=lambda: (order.reach(0), order.reach(3))[1])
    preparing = pool.submit(snapshotter.prepare, "key", "", {})
    at(monkeypatch, "numbered", before=lambda: order.reach(1), after=lambda: order.reach(2))
    cleaning = pool.submit(snapshotter.cleanup)
    assert outcome(preparing) is None
    assert outcome(cleaning) is None
    assert Path(snapshotter.mounts("key")[0].source).is_dir()
    assert directories(tmp_path) == 1


def test_two_commits_under_one_name(snapshotter: Snapshotter, pool: ThreadPoolExecutor) -> None:
    """One is kept; the other's snapshot is still active, with what was written into it."""
    for key in ("one", "two"):
        source = snapshotter.prepare(key, "", {})[0].source
        (Path(source) / "file").write_text(key)
    ended = [pool.submit(snapshotter.commit, "name", key, {}) for key in ("one", "two")]
    assert {outcome(call) for call in ended} == {None, AlreadyExistsError}
    (left,) = snapshotter.walk(["kind==active"])
    (mount,) = snapshotter.view("view", "name", {})
    assert {left.name, (Path(mount.source) / "file").read_text()} == {"one", "two"}


def test_commit_and_remove_of_one_key(snapshotter: Snapshotter, pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    """Whichever is first: either the key is gone, or the name is there."""
    for number in range(20):
        snapshotter.prepare("key", "", {})
        committing = pool.submit(snapshotter.commit, f"name-{number}", "key", {})
        removing = pool.submit(snapshotter.remove, "key")
        assert {outcome(committing), outcome(removing)} == {None, NotFoundError}
    snapshotter.cleanup()
    assert directories(tmp_path) == len(list(snapshotter.walk()))


def test_a_layer_that_is_removed_while_another_client_asks_for_it(
    snapshotter: Snapshotter, layers: DirectoryLayers, pool: ThreadPoolExecutor, order: Sequencer
) -> None:
    """The last snapshot goes, and a clean-up runs, between mounting for the new one and its row: the mount stays."""
    with pytest.raises(AlreadyExistsError):
        snapshotter.prepare("a/1/extract", "", labels_of(ONE, ONE.diff_id))
    (first,) = snapshotter.walk()
    layers.during_ensure = lambda: (order.reach(0), order.reach(2))[1]
    # under another reference, so that the layers are asked again
    labels = labels_of(ONE, ONE.diff_id, **{IMAGE_LABEL: "mirror.test/app:1"})
    asking = pool.submit(snapshotter.prepare, "b/1/extract", "", labels)
    with order.step(1):
        snapshotter.remove(first.name)
        snapshotter.cleanup()
    assert outcome(asking) is AlreadyExistsError
    (found,) = snapshotter.walk()
    assert layers.mountpoint(ONE.diff_id).is_dir()
    assert snapshotter.view("c/1/v", found.name, {})


def test_a_layer_that_is_adopted_while_its_last_snapshot_goes(
    snapshotter: Snapshotter, layers: DirectoryLayers, pool: ThreadPoolExecutor, order: Sequencer
) -> None:
    """The same for a client that sends no labels."""
    with pytest.raises(AlreadyExistsError):
        snapshotter.prepare("a/1/extract", "", labels_of(ONE, ONE.diff_id))
    (first,) = snapshotter.walk()
    mounts = snapshotter.prepare("b/1/extract", "", {})
    layers.during_ensure = lambda: (order.reach(0), order.reach(2))[1]
    adopting = pool.submit(snapshotter.adopt, mounts, ONE)
    with order.step(1):
        snapshotter.remove(first.name)
        snapshotter.cleanup()
    assert adopting.result(60) is True
    snapshotter.commit("b/2/name", "b/1/extract", {})
    snapshotter.cleanup()
    assert layers.mountpoint(ONE.diff_id).is_dir()


def test_a_snapshot_that_is_removed_while_it_is_adopted(
    snapshotter: Snapshotter, layers: DirectoryLayers, pool: ThreadPoolExecutor, order: Sequencer
) -> None:
    """The layer was mounted for nobody, and goes again."""
    mounts = snapshotter.prepare("b/1/extract", "", {})
    layers.during_ensure = lambda: (order.reach(0), order.reach(2))[1]
    adopting = pool.submit(snapshotter.adopt, mounts, ONE)
    with order.step(1):
        snapshotter.remove("b/1/extract")
    assert outcome(adopting) is NotFoundError
    assert layers.mounted == set()


def test_a_snapshot_that_is_committed_while_it_is_adopted(
    snapshotter: Snapshotter, layers: DirectoryLayers, pool: ThreadPoolExecutor, order: Sequencer
) -> None:
    """It stays what it was committed as."""
    mounts = snapshotter.prepare("b/1/extract", "", {})
    layers.during_ensure = lambda: (order.reach(0), order.reach(2))[1]
    adopting = pool.submit(snapshotter.adopt, mounts, ONE)
    with order.step(1):
        snapshotter.commit("name", "b/1/extract", {})
    assert outcome(adopting) is FailedPreconditionError
    assert layers.mounted == set()
    assert snapshotter.usage("name").inodes == 1


def test_a_lent_layer_stays_until_it_is_given_back(snapshotter: Snapshotter, layers: DirectoryLayers) -> None:
    """While its files are copied elsewhere, its last snapshot may go, and somebody else may lend it too."""
    with snapshotter.lent(ONE, "ns") as mountpoint:
        with pytest.raises(AlreadyExistsError):
            snapshotter.prepare("a/1/extract", "", labels_of(ONE, ONE.diff_id))
        with snapshotter.lent(ONE, "ns") as again:
            assert again == mountpoint
        (info,) = snapshotter.walk()
        snapshotter.remove(info.name)
        snapshotter.cleanup()
        assert mountpoint.is_dir()
    assert not mountpoint.exists()
    assert layers.count("release") == 1


def test_the_same_chain_with_and_without_labels_at_once(
    snapshotter: Snapshotter, layers: DirectoryLayers, pool: ThreadPoolExecutor
) -> None:
    """Both get their snapshot, on one mount."""
    chain = chains(ONE, TWO)
    mounts = snapshotter.prepare("b/1/extract", "", {})
    labelled = pool.submit(snapshotter.prepare, "a/1/extract", "", labels_of(ONE, chain[0]))
    adopted = pool.submit(snapshotter.adopt, mounts, ONE)
    assert outcome(labelled) is AlreadyExistsError
    assert adopted.result(60) is True
    snapshotter.commit(f"b/2/{to_text(chain[0])}", "b/1/extract", {})
    kinds = [info.kind for info in snapshotter.walk()]
    assert kinds == [Kind.COMMITTED] * 2
    assert layers.mounted == {layers.mountpoint(ONE.diff_id).name}
