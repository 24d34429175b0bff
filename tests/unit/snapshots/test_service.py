"""The gRPC adapter over a real socket: messages, codes, bounds."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import field_mask_pb2

from snapshotter import errors
from snapshotter.api import snapshots_pb2, snapshots_pb2_grpc
from snapshotter.snapshots import service
from snapshotter.snapshots.answers import code_of, fitting
from snapshotter.snapshots.model import Info, Kind
from snapshotter.snapshots.service import SnapshotsService, pages
from snapshotter.snapshots.snapshotter import Snapshotter
from tests.support.layers import DirectoryLayers, labels_of, metadata


@pytest.fixture
def client(snapshotter: Snapshotter) -> Iterator[Any]:
    server = grpc.server(ThreadPoolExecutor(4))
    snapshots_pb2_grpc.add_SnapshotsServicer_to_server(SnapshotsService(snapshotter), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield snapshots_pb2_grpc.SnapshotsStub(channel)
    server.stop(None).wait()


def refused(call: Any, request: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        list(call(request))
    return caught.value.code(), caught.value.details() or ""


def test_every_category_of_error_has_a_code_that_containerd_knows() -> None:
    known = {
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNAVAILABLE,
    }
    categories = [
        category
        for _, category in inspect.getmembers(errors, inspect.isclass)
        if issubclass(category, errors.PuzzlefsError) and category is not errors.PuzzlefsError
    ]
    assert len(categories) >= 7
    assert {code_of(category("x")) for category in categories} == known
    assert code_of(errors.NotFoundError("x")) is grpc.StatusCode.NOT_FOUND
    assert code_of(errors.AlreadyExistsError("x")) is grpc.StatusCode.ALREADY_EXISTS
    assert code_of(errors.InvalidError("x")) is grpc.StatusCode.INVALID_ARGUMENT
    assert code_of(errors.UnavailableError("x")) is grpc.StatusCode.UNAVAILABLE
    assert code_of(errors.CorruptError("x")) is grpc.StatusCode.FAILED_PRECONDITION


def test_one_life_over_the_wire(client: Any) -> None:
    made = client.Prepare(snapshots_pb2.PrepareSnapshotRequest(key="k", labels={"a": "1"}))
    assert [(mount.type, list(mount.options)) for mount in made.mounts] == [("bind", ["rw", "rbind"])]
    assert client.Mounts(snapshots_pb2.MountsRequest(key="k")).mounts == made.mounts
    client.Commit(snapshots_pb2.CommitSnapshotRequest(key="k", name="n", labels={"b": "2"}))
    info = client.Stat(snapshots_pb2.StatSnapshotRequest(key="n")).info
    assert (info.name, info.parent, info.kind, dict(info.labels)) == ("n", "", snapshots_pb2.COMMITTED, {"b": "2"})
    assert info.created_at.ToNanoseconds() == info.updated_at.ToNanoseconds() > 10**18
    changed = client.Update(
        snapshots_pb2.UpdateSnapshotRequest(
            info=snapshots_pb2.Info(name="n", parent="other", labels={"c": "3", "d": "4"}),
            update_mask=field_mask_pb2.FieldMask(paths=["labels.c"]),
        )
    ).info
    assert (changed.parent, dict(changed.labels)) == ("", {"b": "2", "c": "3"})
    client.View(snapshots_pb2.ViewSnapshotRequest(key="v", parent="n"))
    (page,) = client.List(snapshots_pb2.ListSnapshotsRequest(filters=["kind==view"]))
    assert [info.name for info in page.info] == ["v"]
    assert client.Usage(snapshots_pb2.UsageRequest(key="n")).inodes == 1
    client.Remove(snapshots_pb2.RemoveSnapshotRequest(key="v"))
    client.Remove(snapshots_pb2.RemoveSnapshotRequest(key="n"))
    client.Cleanup(snapshots_pb2.CleanupRequest())
    assert list(client.List(snapshots_pb2.ListSnapshotsRequest())) == []


def test_errors_say_what_on_what(client: Any, layers: DirectoryLayers) -> None:
    assert refused(client.Stat, snapshots_pb2.StatSnapshotRequest(key="k")) == (
        grpc.StatusCode.NOT_FOUND,
        "snapshot 'k' does not exist",
    )
    layer = metadata("one")
    layers.refused[layer.diff_id] = errors.UnavailableError("image a, layer b, host c: no route")
    request = snapshots_pb2.PrepareSnapshotRequest(key="ns/1/e", labels=labels_of(layer, layer.diff_id))
    assert refused(client.Prepare, request) == (grpc.StatusCode.UNAVAILABLE, "image a, layer b, host c: no route")
    layers.refused.clear()
    assert refused(client.Prepare, request)[0] is grpc.StatusCode.ALREADY_EXISTS
    assert refused(client.List, snapshots_pb2.ListSnapshotsRequest(filters=["name="]))[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_what_nobody_expected_is_internal_and_says_nothing_of_the_inside(client: Any, layers: DirectoryLayers) -> None:
    layer = metadata("one")
    layers.refused[layer.diff_id] = RuntimeError("secret")  # type: ignore[assignment]
    request = snapshots_pb2.PrepareSnapshotRequest(key="ns/1/e", labels=labels_of(layer, layer.diff_id))
    code, details = refused(client.Prepare, request)
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in details


def test_a_long_message_fits_a_header(client: Any, layers: DirectoryLayers) -> None:
    layer = metadata("one")
    layers.refused[layer.diff_id] = errors.UnavailableError("ü" * 100_000)
    request = snapshots_pb2.PrepareSnapshotRequest(key="ns/1/e", labels=labels_of(layer, layer.diff_id))
    code, details = refused(client.Prepare, request)
    assert code is grpc.StatusCode.UNAVAILABLE
    assert details.startswith("üüü")


@pytest.mark.parametrize(("character", "encoded"), [("a", 1), ("%", 3), ("\n", 3), ("ü", 6), ("日", 9), ("😀", 12)])
def test_a_message_is_cut_by_its_encoded_length(character: str, encoded: int) -> None:
    whole = character * (6000 // encoded)
    assert fitting(whole) == whole
    assert fitting(whole + character * 10) == whole + "…"


@pytest.mark.parametrize(
    "request_",
    [
        snapshots_pb2.PrepareSnapshotRequest(),
        snapshots_pb2.PrepareSnapshotRequest(key="k" * (service.KEY_MAX + 1)),
        snapshots_pb2.PrepareSnapshotRequest(key="ü" * (service.KEY_MAX // 2 + 1)),
        snapshots_pb2.PrepareSnapshotRequest(key="k", parent="p" * (service.KEY_MAX + 1)),
        snapshots_pb2.PrepareSnapshotRequest(key="k", labels={"l": "v" * service.LABEL_MAX}),
        snapshots_pb2.PrepareSnapshotRequest(key="k", labels={str(n): "v" for n in range(service.LABELS_MAX + 1)}),
        snapshots_pb2.PrepareSnapshotRequest(key="k", labels={str(n): "v" * 4000 for n in range(300)}),
    ],
)
def test_what_is_too_big_is_refused(client: Any, request_: Any) -> None:
    assert refused(client.Prepare, request_)[0] is grpc.StatusCode.INVALID_ARGUMENT
    view = snapshots_pb2.ViewSnapshotRequest(key=request_.key, parent=request_.parent, labels=request_.labels)
    assert refused(client.View, view)[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_what_just_fits_is_taken(client: Any) -> None:
    labels = {"l": "v" * (service.LABEL_MAX - 1)}
    client.Prepare(snapshots_pb2.PrepareSnapshotRequest(key="k" * service.KEY_MAX, labels=labels))
    (page,) = client.List(snapshots_pb2.ListSnapshotsRequest())
    assert dict(page.info[0].labels) == labels


def test_a_list_is_sent_in_messages_of_bounded_size() -> None:
    def info(number: int, size: int) -> Info:
        return Info(str(number), "", Kind.VIEW, {"l": "v" * size}, 1, 1)

    assert [len(page.info) for page in pages(info(n, 1) for n in range(250))] == [100, 100, 50]
    big = list(pages(info(n, 300_000) for n in range(7)))
    assert [len(page.info) for page in big] == [3, 3, 1]
    assert all(page.ByteSize() < 4 << 20 for page in big)
    assert list(pages([])) == []


def test_the_labels_of_one_snapshot_fit_a_message(tmp_path: Path) -> None:
    assert service.LABELS_SIZE_MAX + service.PAGE_SIZE < 4 << 20
