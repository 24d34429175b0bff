"""The path without labels: an active snapshot becomes a lazy layer by Apply, and is one after Commit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from snapshotter.api import diff_pb2, diff_pb2_grpc, types_pb2
from snapshotter.errors import AlreadyExistsError, FailedPreconditionError, UnavailableError
from snapshotter.format.annotations import MEDIA_TYPE_METADATA, MEDIA_TYPE_PACK, METADATA, MetadataLayer, PackLayer
from snapshotter.format.digest import Digest, to_text
from snapshotter.snapshots.differ import NAMESPACE_HEADER, DiffService
from snapshotter.snapshots.lazy import diff_id_of
from snapshotter.snapshots.model import REF_LABEL, Kind, Mount
from snapshotter.snapshots.service import mount_messages
from snapshotter.snapshots.snapshotter import Snapshotter
from tests.support.layers import DirectoryLayers, chains, labels_of, metadata, pack

ONE, TWO = metadata("one"), metadata("two")


@pytest.fixture
def differ(snapshotter: Snapshotter) -> Iterator[Any]:
    server = grpc.server(ThreadPoolExecutor(4))
    diff_pb2_grpc.add_DiffServicer_to_server(DiffService(snapshotter), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield diff_pb2_grpc.DiffStub(channel)
    server.stop(None).wait()


def request(layer: MetadataLayer | PackLayer, mounts: Sequence[Mount], **changed: str) -> diff_pb2.ApplyRequest:
    """What containerd asks with the descriptor of `layer` from an image's manifest."""
    lazy = isinstance(layer, MetadataLayer)
    descriptor = types_pb2.Descriptor(
        media_type=MEDIA_TYPE_METADATA if lazy else MEDIA_TYPE_PACK,
        digest=to_text(layer.metadata if isinstance(layer, MetadataLayer) else layer.pack),
        annotations={**layer.annotations(), **changed},
    )
    return diff_pb2.ApplyRequest(diff=descriptor, mounts=mount_messages(mounts))


def unpack(snapshotter: Snapshotter, differ: Any, *layers: MetadataLayer | PackLayer, namespace: str = "default") -> list[str]:
    """What ``Image.Unpack`` does with an image of these layers; the names of the snapshots."""
    names: list[str] = []
    for number, (layer, chain) in enumerate(zip(layers, chains(*layers), strict=True), 1):
        key, name = f"{namespace}/{number}/extract-{number} {to_text(chain)}", f"{namespace}/{number}0/{to_text(chain)}"
        mounts = snapshotter.prepare(key, names[-1] if names else "", {})
        assert differ.Apply(request(layer, mounts)).applied.digest == to_text(diff_id_of(layer))
        snapshotter.commit(name, key, {"kept": "label"})
        names.append(name)
    return names


def lowers(mounts: Sequence[Mount]) -> list[str]:
    """The lower directories of a snapshot's mounts, topmost first."""
    return next(option for option in mounts[0].options if option.startswith("lowerdir=")).removeprefix("lowerdir=").split(":")


def refused(differ: Any, asked: diff_pb2.ApplyRequest) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        differ.Apply(asked)
    return caught.value.code(), caught.value.details() or ""


def test_an_image_ends_in_mounted_layers(snapshotter: Snapshotter, differ: Any, layers: DirectoryLayers) -> None:
    names = unpack(snapshotter, differ, ONE, TWO, pack("a"))
    infos = [snapshotter.stat(name) for name in names]
    assert [(info.kind, info.parent, dict(info.labels)) for info in infos] == [
        (Kind.COMMITTED, parent, {"kept": "label"}) for parent in ("", *names[:-1])
    ]
    mounts = snapshotter.prepare("default/9/container", names[-1], {})
    assert lowers(mounts) == [str(layers.mountpoint(TWO.diff_id)), str(layers.mountpoint(ONE.diff_id))]
    assert snapshotter.usage(names[0]).size == 4242


def test_committed_layers_keep_no_directory(snapshotter: Snapshotter, differ: Any, tmp_path: Path) -> None:
    unpack(snapshotter, differ, ONE, pack("a"))
    assert os.listdir(tmp_path / "root" / "s") == []


def test_an_active_layer_shows_its_files_already(snapshotter: Snapshotter, differ: Any, layers: DirectoryLayers) -> None:
    mounts = snapshotter.prepare("default/1/extract", "", {})
    differ.Apply(request(ONE, mounts))
    assert lowers(snapshotter.mounts("default/1/extract")) == [str(layers.mountpoint(ONE.diff_id))]


def test_apply_can_be_repeated(snapshotter: Snapshotter, differ: Any, layers: DirectoryLayers) -> None:
    mounts = snapshotter.prepare("default/1/extract", "", {})
    for _ in range(2):
        differ.Apply(request(ONE, mounts))
    code, message = refused(differ, request(TWO, mounts))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "another PuzzleFS layer" in message
    snapshotter.cleanup()
    assert layers.mounted == {layers.mountpoint(ONE.diff_id).name}


def test_the_layer_is_asked_for_in_the_namespace_of_the_key(
    snapshotter: Snapshotter, differ: Any, layers: DirectoryLayers
) -> None:
    unpack(snapshotter, differ, ONE, namespace="k8s.io")
    assert layers.asked == [(ONE, ONE.source, "k8s.io")]


def test_a_removed_active_layer_is_released(snapshotter: Snapshotter, differ: Any, layers: DirectoryLayers) -> None:
    mounts = snapshotter.prepare("default/1/extract", "", {})
    differ.Apply(request(ONE, mounts))
    snapshotter.remove("default/1/extract")
    snapshotter.cleanup()
    assert layers.mounted == set()


def test_a_layer_that_cannot_be_had_leaves_nothing(snapshotter: Snapshotter, differ: Any, layers: DirectoryLayers) -> None:
    layers.refused[ONE.diff_id] = UnavailableError("registry.test is away")
    mounts = snapshotter.prepare("default/1/extract", "", {})
    assert refused(differ, request(ONE, mounts)) == (grpc.StatusCode.UNAVAILABLE, "registry.test is away")
    assert layers.mounted == set()
    # the client may go on with the snapshot as it is
    snapshotter.commit("default/2/x", "default/1/extract", {})
    assert snapshotter.usage("default/2/x").inodes == 1


def test_a_restart_mounts_what_was_applied(
    snapshotter: Snapshotter, differ: Any, layers: DirectoryLayers, tmp_path: Path
) -> None:
    (name,) = unpack(snapshotter, differ, ONE)
    mounts = snapshotter.prepare("default/8/extract", name, {})
    differ.Apply(request(TWO, mounts))
    snapshotter.close()
    again = Snapshotter(tmp_path / "root", layers)
    again.recover()
    assert {layer.diff_id for layer, _ in layers.restored} == {ONE.diff_id, TWO.diff_id}
    again.commit("default/9/top", "default/8/extract", {})
    view = again.view("default/10/view", "default/9/top", {})
    assert lowers(view) == [str(layers.mountpoint(TWO.diff_id)), str(layers.mountpoint(ONE.diff_id))]
    again.close()


def test_a_pull_with_labels_finds_it_afterwards(snapshotter: Snapshotter, differ: Any) -> None:
    """Another client may pull the same image lazily: it gets the snapshot that is there, by the label that it looks for."""
    names = unpack(snapshotter, differ, ONE, TWO)
    chain = chains(ONE, TWO)[1]
    with pytest.raises(AlreadyExistsError):
        snapshotter.prepare("other/1/extract", names[0], labels_of(TWO, chain))
    (found,) = snapshotter.walk([f'labels."{REF_LABEL}"=={to_text(chain)},parent=="{names[0]}"'])
    assert found.name == names[1]


def test_it_can_follow_a_pull_with_labels(snapshotter: Snapshotter, differ: Any, layers: DirectoryLayers) -> None:
    """The same image in another namespace, unpacked there without labels: a snapshot of its own on the same mount."""
    with pytest.raises(AlreadyExistsError):
        snapshotter.prepare("one/1/extract", "", labels_of(ONE, ONE.diff_id))
    (name,) = unpack(snapshotter, differ, ONE, namespace="two")
    (theirs,) = [info.name for info in snapshotter.walk() if info.name != name]
    snapshotter.remove(theirs)
    snapshotter.cleanup()
    assert layers.mounted == {layers.mountpoint(ONE.diff_id).name}
    snapshotter.remove(name)
    snapshotter.cleanup()
    assert layers.mounted == set()


def test_files_written_beside_a_layer_are_not_lost_silently(snapshotter: Snapshotter, differ: Any) -> None:
    mounts = snapshotter.prepare("default/1/extract", "", {})
    differ.Apply(request(ONE, mounts))
    (Path(mounts[0].source) / "file").write_text("mine")
    with pytest.raises(FailedPreconditionError, match="files were written"):
        snapshotter.commit("default/2/x", "default/1/extract", {})


def test_what_is_no_puzzlefs_layer_is_for_the_next_differ(snapshotter: Snapshotter, differ: Any) -> None:
    mounts = mount_messages(snapshotter.prepare("default/1/extract", "", {}))
    tar = types_pb2.Descriptor(media_type="application/vnd.oci.image.layer.v1.tar+gzip", digest="sha256:" + "0" * 64)
    assert refused(differ, diff_pb2.ApplyRequest(diff=tar, mounts=mounts))[0] is grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(grpc.RpcError) as caught:
        differ.Diff(diff_pb2.DiffRequest(left=mounts, right=mounts))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_annotations_must_be_there_and_belong_to_the_blob(snapshotter: Snapshotter, differ: Any) -> None:
    mounts = snapshotter.prepare("default/1/extract", "", {})
    stripped = request(ONE, mounts)
    stripped.diff.annotations.clear()
    assert refused(differ, stripped)[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert "lost its annotation" in refused(differ, stripped)[1]
    code, message = refused(differ, request(ONE, mounts, **{METADATA: to_text(TWO.metadata)}))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert to_text(TWO.metadata) in message


def _layer_files(layers: DirectoryLayers, diff_id: Digest) -> Path:
    path = layers.mountpoint(diff_id)
    path.mkdir(parents=True)
    (path / "directory").mkdir(mode=0o750)
    (path / "directory" / "file").write_text("content")
    os.link(path / "directory" / "file", path / "link")
    os.utime(path / "directory", ns=(1, 1_000_000_007))
    return path


@pytest.mark.parametrize("kind", ["overlay", "bind"])
def test_another_snapshotter_gets_the_files(
    snapshotter: Snapshotter, differ: Any, layers: DirectoryLayers, tmp_path: Path, kind: str
) -> None:
    _layer_files(layers, ONE.diff_id)
    layers.keep = True
    target = tmp_path / "theirs"
    target.mkdir()
    options = ("rw", "rbind") if kind == "bind" else ("workdir=/w", f"upperdir={target}", "lowerdir=/nothing")
    mount = Mount(kind, str(target) if kind == "bind" else "overlay", options)
    answer = differ.Apply(request(ONE, [mount]), metadata=[(NAMESPACE_HEADER, "their-namespace")])
    assert answer.applied.digest == to_text(ONE.diff_id)
    assert layers.asked[0][2] == "their-namespace"
    assert (target / "link").read_text() == "content"
    assert (target / "link").stat().st_nlink == 2
    assert (target / "directory").stat().st_mtime_ns == 1_000_000_007
    assert (target / "directory").stat().st_mode & 0o777 == 0o750
    assert layers.count("release") == 1, "the layer is released when its files are copied"
    assert differ.Apply(request(pack("a"), [mount])).applied.digest == to_text(pack("a").pack)


def test_what_has_no_directory_is_refused(snapshotter: Snapshotter, differ: Any) -> None:
    device = Mount("ext4", "/dev/mapper/x", ())
    code, message = refused(differ, request(ONE, [device]))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "ext4" in message


def test_a_directory_with_files_is_left_alone(
    snapshotter: Snapshotter, differ: Any, layers: DirectoryLayers, tmp_path: Path
) -> None:
    _layer_files(layers, ONE.diff_id)
    layers.keep = True
    target = tmp_path / "theirs"
    target.mkdir()
    (target / "file").write_text("theirs")
    assert (
        refused(differ, request(ONE, [Mount("bind", str(target), ("rw", "rbind"))]))[0] is grpc.StatusCode.FAILED_PRECONDITION
    )
    assert (target / "file").read_text() == "theirs"
    assert os.listdir(target) == ["file"]
