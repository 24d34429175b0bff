"""A pull with labels: what Prepare answers, what is recorded, and what stays when it fails."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snapshotter.errors import (
    AlreadyExistsError,
    CorruptError,
    FailedPreconditionError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from snapshotter.format.annotations import MetadataLayer, PackLayer
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.snapshots.lazy import IMAGE_LABEL
from snapshotter.snapshots.model import REF_LABEL, Info, Kind, Usage
from snapshotter.snapshots.pull import KeyedLocks
from snapshotter.snapshots.snapshotter import Snapshotter
from tests.support.layers import DirectoryLayers, chains, labels_of, metadata, pack

ONE, TWO = metadata("one"), metadata("two")


def find(snapshotter: Snapshotter, chain: Digest, parent: str) -> list[Info]:
    """What containerd asks after "already exists"."""
    return list(snapshotter.walk([f'labels."{REF_LABEL}"=={to_text(chain)},parent=="{parent}"']))


def pull(snapshotter: Snapshotter, *layers: MetadataLayer | PackLayer, namespace: str = "default", **more: str) -> list[Info]:
    """What containerd's unpacker does with an image of these layers; the snapshots that it ends with."""
    found: list[Info] = []
    for number, (layer, chain) in enumerate(zip(layers, chains(*layers), strict=True), 1):
        parent = found[-1].name if found else ""
        key = f"{namespace}/{number}/extract-{number} {to_text(chain)}"
        with pytest.raises(AlreadyExistsError):
            snapshotter.prepare(key, parent, labels_of(layer, chain, **more))
        (info,) = find(snapshotter, chain, parent)
        found.append(info)
    return found


def test_containerd_finds_committed_snapshots_with_all_labels(snapshotter: Snapshotter, layers: DirectoryLayers) -> None:
    stack: list[MetadataLayer | PackLayer] = [ONE, TWO, pack("a"), pack("b")]
    infos = pull(snapshotter, *stack, other="label")
    for info, layer, chain in zip(infos, stack, chains(*stack), strict=True):
        assert info.kind is Kind.COMMITTED
        assert info.labels == labels_of(layer, chain, other="label")
        assert snapshotter.stat(info.name) == info
    assert [info.parent for info in infos] == ["", *(info.name for info in infos[:-1])]
    assert [diff_id for _, diff_id in layers.calls] == [ONE.diff_id, TWO.diff_id]


def test_the_container_on_it_sees_the_metadata_layers_topmost_first(snapshotter: Snapshotter, layers: DirectoryLayers) -> None:
    top = pull(snapshotter, ONE, TWO, pack("a"))[-1]
    (mount,) = snapshotter.prepare("default/9/container", top.name, {})
    lowerdir = f"lowerdir={layers.mountpoint(TWO.diff_id)}:{layers.mountpoint(ONE.diff_id)}"
    assert mount.type == "overlay"
    assert lowerdir in mount.options
    assert snapshotter.mounts("default/9/container") == (mount,)
    (view,) = snapshotter.view("default/10/view", top.name, {})
    assert [option for option in view.options if option not in ("index=off", "xino=on")] == [lowerdir]


def test_an_image_of_packs_alone_can_be_mounted(snapshotter: Snapshotter, tmp_path: Path) -> None:
    top = pull(snapshotter, pack("a"), pack("b"))[-1]
    (mount,) = snapshotter.prepare("default/9/container", top.name, {})
    assert (mount.type, mount.options) == ("bind", ("rw", "rbind"))
    assert Path(mount.source).is_dir()


def test_an_ordinary_layer_can_stand_between(snapshotter: Snapshotter, layers: DirectoryLayers) -> None:
    (base,) = pull(snapshotter, ONE)
    middle = chains(ONE, metadata("tar"))[1]
    snapshotter.prepare("default/2/extract", base.name, {REF_LABEL: to_text(middle)})
    snapshotter.commit(f"default/3/{to_text(middle)}", "default/2/extract", {REF_LABEL: to_text(middle)})
    top = chains(ONE, metadata("tar"), TWO)[2]
    with pytest.raises(AlreadyExistsError):
        snapshotter.prepare("default/4/extract", f"default/3/{to_text(middle)}", labels_of(TWO, top))
    (info,) = find(snapshotter, top, f"default/3/{to_text(middle)}")
    (mount,) = snapshotter.prepare("default/5/container", info.name, {})
    lowerdir = next(option for option in mount.options if option.startswith("lowerdir="))
    top_lower, ordinary, bottom = lowerdir.removeprefix("lowerdir=").split(":")
    assert (top_lower, bottom) == (str(layers.mountpoint(TWO.diff_id)), str(layers.mountpoint(ONE.diff_id)))
    assert ordinary.endswith("/fs")


def test_a_data_layer_asks_nobody(snapshotter: Snapshotter, layers: DirectoryLayers) -> None:
    pull(snapshotter, pack("a"))
    assert layers.calls == []


def test_where_the_layer_is_comes_from_the_labels(snapshotter: Snapshotter, layers: DirectoryLayers) -> None:
    pull(snapshotter, ONE, namespace="k8s.io", **{IMAGE_LABEL: "registry.test/app:2"})
    assert layers.asked == [(ONE, "registry.test/app:2", "k8s.io")]


def test_without_a_chain_id_it_is_an_ordinary_snapshot(snapshotter: Snapshotter, layers: DirectoryLayers) -> None:
    (mount,) = snapshotter.prepare("default/1/x", "", ONE.annotations())
    assert mount.options == ("rw", "rbind")
    assert layers.calls == []


def test_content_cannot_be_planted_under_another_chain_id(snapshotter: Snapshotter, layers: DirectoryLayers) -> None:
    with pytest.raises(InvalidError, match="not what chain ID"):
        snapshotter.prepare("default/1/extract", "", labels_of(ONE, sha256(b"victim")))
    assert layers.calls == []
    assert list(snapshotter.walk()) == []


def test_a_chain_on_something_made_by_hand_is_refused(snapshotter: Snapshotter) -> None:
    snapshotter.prepare("default/1/a", "", {})
    snapshotter.commit("default/2/by hand", "default/1/a", {})
    with pytest.raises(FailedPreconditionError, match="unknown"):
        snapshotter.prepare("default/3/extract", "default/2/by hand", labels_of(ONE, ONE.diff_id))


def test_a_parent_must_be_there_and_committed(snapshotter: Snapshotter) -> None:
    with pytest.raises(NotFoundError):
        snapshotter.prepare("default/3/extract", "nothing", labels_of(ONE, ONE.diff_id))
    snapshotter.prepare("default/1/a", "", {})
    with pytest.raises(InvalidError, match="not committed"):
        snapshotter.prepare("default/3/extract", "default/1/a", labels_of(ONE, ONE.diff_id))


@pytest.mark.parametrize("error", [UnavailableError("no route"), CorruptError("wrong digest"), RuntimeError("a bug")])
def test_a_layer_that_cannot_be_had_leaves_nothing(snapshotter: Snapshotter, layers: DirectoryLayers, error: Exception) -> None:
    layers.refused[ONE.diff_id] = error  # type: ignore[assignment]
    with pytest.raises(type(error), match=str(error)):
        snapshotter.prepare("default/1/extract", "", labels_of(ONE, ONE.diff_id))
    assert list(snapshotter.walk()) == []
    assert layers.mounted == set()
    del layers.refused[ONE.diff_id]
    snapshotter.cleanup()
    assert layers.count("release") == 1
    pull(snapshotter, ONE)


def test_another_namespace_gets_the_same_snapshot_and_its_hints_are_kept(
    snapshotter: Snapshotter, layers: DirectoryLayers
) -> None:
    first = pull(snapshotter, ONE, TWO)
    again = pull(snapshotter, ONE, TWO, namespace="k8s.io", **{IMAGE_LABEL: "mirror.test/app:1"})
    assert [info.name for info in again] == [info.name for info in first]
    assert again[0].labels == {**first[0].labels, IMAGE_LABEL: "mirror.test/app:1"}
    assert ("mirror.test/app:1", "k8s.io") in [(image, namespace) for _, image, namespace in layers.asked]


def test_the_same_request_again_asks_nobody(snapshotter: Snapshotter, layers: DirectoryLayers) -> None:
    pull(snapshotter, ONE)
    pull(snapshotter, ONE)
    assert layers.count("ensure") == 1


def test_a_layer_in_two_chains_is_released_with_the_last(snapshotter: Snapshotter, layers: DirectoryLayers) -> None:
    on_one = pull(snapshotter, ONE, TWO)
    alone = pull(snapshotter, TWO)
    snapshotter.remove(on_one[1].name)
    snapshotter.cleanup()
    assert layers.count("release") == 0
    snapshotter.remove(alone[0].name)
    assert layers.count("release") == 0
    snapshotter.cleanup()
    assert layers.calls[-1] == ("release", TWO.diff_id)
    assert layers.mounted == {layers.mountpoint(ONE.diff_id).name}


def test_a_clean_up_says_which_layers_are_needed(snapshotter: Snapshotter, layers: DirectoryLayers) -> None:
    (one, two) = (pull(snapshotter, layer)[0] for layer in (ONE, TWO))
    snapshotter.cleanup()
    assert layers.needed == {ONE.diff_id, TWO.diff_id}
    snapshotter.remove(one.name)
    snapshotter.cleanup()
    assert layers.needed == {TWO.diff_id}
    assert snapshotter.stat(two.name) == two


def test_a_layer_that_cannot_be_released_is_tried_again(snapshotter: Snapshotter, layers: DirectoryLayers) -> None:
    (info,) = pull(snapshotter, ONE)
    snapshotter.remove(info.name)
    layers.stuck[ONE.diff_id] = UnavailableError("busy")
    snapshotter.cleanup()
    assert layers.mounted
    layers.stuck.clear()
    snapshotter.cleanup()
    assert not layers.mounted


def test_requests_for_one_chain_at_once_fetch_it_once(snapshotter: Snapshotter, layers: DirectoryLayers) -> None:
    everybody = threading.Barrier(8)

    def prepare(number: int) -> str:
        everybody.wait()
        with pytest.raises(AlreadyExistsError) as caught:
            snapshotter.prepare(f"default/{number}/extract", "", labels_of(ONE, ONE.diff_id))
        return str(caught.value)

    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(prepare, range(8)))
    assert len(answers) == 1
    assert layers.count("ensure") == 1
    assert len(list(snapshotter.walk())) == 1


def test_a_second_client_tries_for_itself_when_the_first_fails(snapshotter: Snapshotter, layers: DirectoryLayers) -> None:
    second_waits = threading.Event()

    def first_fails() -> None:
        if layers.count("ensure") == 1:
            second_waits.wait(30)
            raise UnavailableError("no route")

    layers.during_ensure = first_fails

    def prepare(number: int) -> type[Exception]:
        try:
            snapshotter.prepare(f"default/{number}/extract", "", labels_of(ONE, ONE.diff_id))
        except (AlreadyExistsError, UnavailableError) as error:
            return type(error)
        raise AssertionError("prepare answered mounts")

    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(prepare, number) for number in (1, 2)]
        second_waits.set()
        kinds = {answer.result(30) for answer in answers}
    assert kinds == {UnavailableError, AlreadyExistsError}
    assert layers.mounted


def test_a_clean_up_leaves_a_layer_alone_that_is_being_fetched(snapshotter: Snapshotter, layers: DirectoryLayers) -> None:
    layers.during_ensure = snapshotter.cleanup
    pull(snapshotter, ONE)
    assert layers.count("release") == 0
    assert layers.mounted


def test_a_parent_removed_meanwhile_leaves_nothing(snapshotter: Snapshotter, layers: DirectoryLayers) -> None:
    (base,) = pull(snapshotter, ONE)
    layers.during_ensure = lambda: snapshotter.remove(base.name)
    with pytest.raises(NotFoundError):
        snapshotter.prepare("default/2/extract", base.name, labels_of(TWO, chains(ONE, TWO)[1]))
    snapshotter.cleanup()
    assert list(snapshotter.walk()) == []
    assert layers.mounted == set()


def test_a_restart_mounts_what_is_recorded_even_if_the_labels_are_gone(tmp_path: Path, layers: DirectoryLayers) -> None:
    first = Snapshotter(tmp_path / "root", layers)
    one, two = pull(first, ONE, TWO)
    pull(first, metadata("unused"))
    first.update(one.name, {REF_LABEL: one.labels[REF_LABEL]})
    first.remove(find(first, metadata("unused").diff_id, "")[0].name)
    first.close()

    second = Snapshotter(tmp_path / "root", layers)
    assert second.recover().failed == {}
    assert sorted(layers.restored, key=repr) == sorted([(ONE, ONE.source), (TWO, TWO.source)], key=repr)
    assert layers.calls[-1] == ("release", metadata("unused").diff_id)
    assert second.prepare("default/9/c", two.name, {})[0].type == "overlay"
    second.close()


def test_a_layer_that_a_start_cannot_mount_is_isolated_and_tried_again(tmp_path: Path, layers: DirectoryLayers) -> None:
    first = Snapshotter(tmp_path / "root", layers)
    bad, good = pull(first, ONE)[0], pull(first, TWO)[0]
    first.close()

    layers.refused[ONE.diff_id] = UnavailableError("metadata of layer is gone")
    second = Snapshotter(tmp_path / "root", layers)
    assert second.recover().failed.keys() == {ONE.diff_id}
    assert second.prepare("default/8/c", good.name, {})
    with pytest.raises(UnavailableError, match="is gone"):
        second.prepare("default/9/c", bad.name, {})
    assert second.stat(bad.name) == bad
    del layers.refused[ONE.diff_id]
    assert second.prepare("default/9/c", bad.name, {})
    second.close()


def test_pulling_again_mends_a_layer_that_a_start_could_not_mount(tmp_path: Path, layers: DirectoryLayers) -> None:
    first = Snapshotter(tmp_path / "root", layers)
    pull(first, ONE)
    first.close()
    layers.refused[ONE.diff_id] = UnavailableError("gone")
    second = Snapshotter(tmp_path / "root", layers)
    second.recover()
    del layers.refused[ONE.diff_id]
    before = layers.count("ensure")
    pull(second, ONE)
    assert layers.count("ensure") == before + 1
    second.close()


def test_usage_of_a_layer_is_what_it_takes_here_and_of_a_pack_nothing(snapshotter: Snapshotter) -> None:
    one, two, data = pull(snapshotter, ONE, TWO, pack("a"))
    assert snapshotter.usage(one.name) == Usage(4242, 42)
    assert snapshotter.usage(two.name) == Usage(4241, 42), "without what the layer below has"
    assert snapshotter.usage(data.name) == Usage()


def test_keyed_locks_keep_nothing_that_nobody_holds() -> None:
    locks = KeyedLocks()
    with locks.hold(ONE.diff_id) as held, locks.hold(TWO.diff_id):
        assert held
        with locks.hold(ONE.diff_id, wait=False) as other:
            assert not other
    with locks.hold(ONE.diff_id, wait=False) as again:
        assert again
    assert not locks._locks
