"""Ordinary snapshots: containerd's semantics, directories, what a crash leaves. (Mounts and contents: the Go suite.)"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from snapshotter.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidError,
    NotFoundError,
    PuzzlefsError,
    UnavailableError,
)
from snapshotter.snapshots import paths
from snapshotter.snapshots.model import Kind, Usage
from snapshotter.snapshots.snapshotter import Snapshotter, updated_labels
from tests.support.layers import DirectoryLayers


def committed(snapshotter: Snapshotter, name: str, parent: str = "") -> Path:
    """Commit an empty snapshot; its upper directory."""
    (mount,) = snapshotter.prepare(name + "-key", parent, {})
    snapshotter.commit(name, name + "-key", {})
    for option in mount.options:
        if option.startswith("upperdir="):
            return Path(option.removeprefix("upperdir="))
    return Path(mount.source)


def directories(tmp_path: Path) -> set[str]:
    return set(os.listdir(tmp_path / "root" / "s"))


def test_one_life(snapshotter: Snapshotter) -> None:
    upper = committed(snapshotter, "base")
    (upper / "file").write_bytes(b"x" * 10_000)
    (mount,) = snapshotter.prepare("key", "base", {"l": "1"})
    assert mount.type == "overlay"
    assert f"lowerdir={upper}" in mount.options
    assert snapshotter.stat("key").kind is Kind.ACTIVE
    snapshotter.commit("top", "key", {})
    assert [(info.name, info.parent) for info in snapshotter.walk()] == [("base", ""), ("top", "base")]
    with pytest.raises(FailedPreconditionError, match="cannot remove"):
        snapshotter.remove("base")
    with pytest.raises(FailedPreconditionError, match="no mounts"):
        snapshotter.mounts("top")
    snapshotter.remove("top")
    snapshotter.remove("base")
    assert list(snapshotter.walk()) == []
    with pytest.raises(NotFoundError):
        snapshotter.stat("base")


def test_a_key_is_taken_by_any_kind(snapshotter: Snapshotter) -> None:
    committed(snapshotter, "base")
    snapshotter.prepare("a", "base", {})
    for taken in ("a", "base"):
        with pytest.raises(AlreadyExistsError):
            snapshotter.prepare(taken, "", {})
        with pytest.raises(AlreadyExistsError):
            snapshotter.view(taken, "base", {})


def test_the_upper_directory_belongs_to_the_owner_of_the_one_below(snapshotter: Snapshotter) -> None:
    upper = committed(snapshotter, "base")
    os.chown(upper, 1001, 1002)
    above = committed(snapshotter, "top", "base")
    assert (above.stat().st_uid, above.stat().st_gid) == (1001, 1002)


def test_remove_frees_the_key_at_once_and_cleanup_the_directory(snapshotter: Snapshotter, tmp_path: Path) -> None:
    (first,) = snapshotter.prepare("a", "", {})
    snapshotter.remove("a")
    (second,) = snapshotter.prepare("a", "", {})
    assert second.source != first.source
    assert Path(first.source).exists()
    snapshotter.cleanup()
    assert not Path(first.source).exists()
    assert Path(second.source).exists()
    assert len(directories(tmp_path)) == 1


def test_a_prepare_that_fails_leaves_nothing(snapshotter: Snapshotter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(paths, "sync_directory", full)
        with pytest.raises(UnavailableError, match="No space left"):
            snapshotter.prepare("a", "", {})
    assert directories(tmp_path) == set()
    assert list(snapshotter.walk()) == []
    snapshotter.prepare("a", "", {})


def test_a_start_deletes_directories_that_no_row_knows(tmp_path: Path, layers: DirectoryLayers) -> None:
    first = Snapshotter(tmp_path / "root", layers)
    (kept,) = first.prepare("kept", "", {})
    (gone,) = first.prepare("gone", "", {})
    first.remove("gone")
    first.close()
    (tmp_path / "root" / "s" / "999" / "fs").mkdir(parents=True)
    (tmp_path / "root" / "s" / "new-x" / "fs").mkdir(parents=True)
    second = Snapshotter(tmp_path / "root", layers)
    second.recover()
    assert directories(tmp_path) == {Path(kept.source).parent.name}
    assert not Path(gone.source).exists()
    second.close()


def test_a_start_finds_rows_whose_directory_is_gone(tmp_path: Path, layers: DirectoryLayers) -> None:
    first = Snapshotter(tmp_path / "root", layers)
    base = committed(first, "base")
    first.prepare("on base", "base", {})
    (active,) = first.prepare("active", "", {})
    first.close()
    for upper in (base, Path(active.source)):
        upper.rmdir()
        (upper.parent / "work").rmdir()
        upper.parent.rmdir()
    second = Snapshotter(tmp_path / "root", layers)
    assert second.recover().broken == ["base"]
    assert [info.name for info in second.walk()] == ["base", "on base"]
    with pytest.raises(FailedPreconditionError, match="is gone"):
        second.mounts("on base")
    with pytest.raises(FailedPreconditionError, match="is gone"):
        second.prepare("new", "base", {})
    with pytest.raises(FailedPreconditionError, match="is gone"):
        second.usage("base")
    second.remove("on base")
    second.remove("base")
    second.close()


def test_usage(snapshotter: Snapshotter) -> None:
    (mount,) = snapshotter.prepare("key", "", {})
    (Path(mount.source) / "file").write_bytes(b"x" * 50_000)
    expected = Usage(sum(path.lstat().st_blocks * 512 for path in (Path(mount.source), Path(mount.source) / "file")), 2)
    assert snapshotter.usage("key") == expected
    snapshotter.commit("base", "key", {})
    assert snapshotter.usage("base") == expected
    snapshotter.view("view", "base", {})
    assert snapshotter.usage("view") == Usage()
    with pytest.raises(NotFoundError):
        snapshotter.usage("nothing")


def test_a_committed_snapshot_is_measured_once(snapshotter: Snapshotter) -> None:
    upper = committed(snapshotter, "base")
    before = snapshotter.usage("base")
    (upper / "more").write_bytes(b"x" * 50_000)
    assert snapshotter.usage("base") == before


def test_list_is_filtered_and_refuses_bad_filters_before_it_answers(snapshotter: Snapshotter) -> None:
    for name in "abc":
        snapshotter.prepare(name, "", {"l": name})
    assert [info.name for info in snapshotter.walk(["labels.l==b", "name==c"])] == ["b", "c"]
    with pytest.raises(InvalidError):
        snapshotter.walk(["name="])


def test_update_changes_labels_and_the_time(snapshotter: Snapshotter) -> None:
    snapshotter.prepare("a", "", {"x": "1", "y": "2"})
    before = snapshotter.stat("a")
    after = snapshotter.update("a", {"x": "3"}, ["labels.x", "labels.y"])
    assert after.labels == {"x": "3"}
    assert after.updated > before.updated
    assert after.created == before.created
    assert snapshotter.stat("a") == after
    with pytest.raises(NotFoundError):
        snapshotter.update("b", {})
    with pytest.raises(InvalidError, match="parent"):
        snapshotter.update("a", {}, ["labels.x", "parent"])
    assert snapshotter.stat("a") == after


@pytest.mark.parametrize(
    ("fieldpaths", "labels"),
    [
        ([], {"b": "20", "c": "3"}),
        (["labels"], {"b": "20", "c": "3"}),
        (["labels.b"], {"a": "1", "b": "20"}),
        (["labels.a"], {"a": "", "b": "2"}),
        (["labels.x.y"], {"a": "1", "b": "2", "x.y": ""}),
        (["labels", "labels.a"], {"a": "", "b": "20", "c": "3"}),
    ],
)
def test_which_labels_an_update_leaves(fieldpaths: list[str], labels: dict[str, str]) -> None:
    assert updated_labels("s", {"a": "1", "b": "2"}, {"b": "20", "c": "3"}, fieldpaths) == labels


def test_a_second_process_state_cannot_be_opened_when_the_root_is_unsafe(tmp_path: Path, layers: DirectoryLayers) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root").chmod(0o777)
    with pytest.raises(FailedPreconditionError):
        Snapshotter(tmp_path / "root", layers)


def test_many_clients_at_once_leave_rows_and_directories_that_agree(snapshotter: Snapshotter, tmp_path: Path) -> None:
    committed(snapshotter, "base")
    everybody = threading.Barrier(6)

    def client(number: int) -> None:
        everybody.wait()
        for turn in range(12):
            key, name, view = f"key-{turn % 3}", f"name-{turn % 4}", f"view-{number}"
            actions: list[Callable[[], object]] = [
                partial(snapshotter.prepare, key, "base", {}),
                partial(snapshotter.commit, name, key, {}),
                partial(snapshotter.view, view, name, {}),
                partial(snapshotter.remove, key if turn % 2 else name),
                partial(snapshotter.remove, view),
                snapshotter.cleanup,
            ]
            for action in actions:
                with contextlib.suppress(AlreadyExistsError, NotFoundError, FailedPreconditionError, InvalidError):
                    action()

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(client, number) for number in range(6)]:
            done.result()
    snapshotter.cleanup()
    assert len(directories(tmp_path)) == len(list(snapshotter.walk()))
    for info in snapshotter.walk():
        if info.kind is not Kind.COMMITTED:
            assert snapshotter.mounts(info.name)


def test_closing_twice_is_harmless_and_nothing_is_served_after(snapshotter: Snapshotter) -> None:
    snapshotter.close()
    snapshotter.close()
    with pytest.raises(PuzzlefsError, match="shutting down"):
        snapshotter.stat("a")
