"""What a daemon tells of itself, over its socket, as status and as metrics."""

from __future__ import annotations

import logging
import socket
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from snapshotter.chunkstore.chain import Node
from snapshotter.chunkstore.reserve import Cap
from snapshotter.chunkstore.stats import Count
from snapshotter.daemon import statusclient
from snapshotter.daemon.activity import Activity
from snapshotter.daemon.addresses import loopback, socket_path
from snapshotter.daemon.metrics import HOSTS_MAX, by_host
from snapshotter.daemon.sources import LayerSource
from snapshotter.daemon.status import ERRORS_KEPT, RecentErrors, Status
from snapshotter.daemon.statusserver import StatusServer
from snapshotter.daemon.supervisor import WorkerState
from snapshotter.errors import CorruptError, InvalidError, PuzzlefsError, UnavailableError
from snapshotter.format.digest import Digest, sha256, to_text
from tests.support.chunks import MemoryBlobs, make_pack, some_chunks

CHUNKS = some_chunks(4)
LAYER = sha256(b"layer")
BROKEN = sha256(b"broken")
IMAGE = "registry.example/app:1"
OTHER = "registry.example/app:latest"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class StubLayers:
    def __init__(self, source: LayerSource, mountpoint: str = "/l/1") -> None:
        self.source = source
        self.place = Path(mountpoint)

    def mounted(self) -> Mapping[Digest, LayerSource]:
        return {LAYER: self.source}

    def chunks(self, diff_id: Digest) -> Sequence[Digest]:
        return [sha256(raw) for raw in CHUNKS]

    def mountpoint(self, diff_id: Digest) -> Path:
        return self.place


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path / "root")
    yield node
    node.close()


@pytest.fixture
def address(tmp_path: Path, node: Node) -> Iterator[Path]:
    """The snapshots' address of a daemon that serves one layer of four chunks, of which two are local."""
    place, blob, _ = make_pack(CHUNKS)
    reader = MemoryBlobs("registry.example/app")
    reader.add(blob)
    node.fetch_indexes([place], [reader])
    for number, raw in enumerate(CHUNKS[:2]):
        node.cache.put(sha256(raw), raw, wanted=number == 0)
    node.cache.flush()
    node.stats.add(Count.BYTES, 1000, source="registry.example/app")
    said: dict[str, Any] = node.report()
    said["reads"]["waiting"] = [{"layer": to_text(LAYER), "chunk": "sha256:00", "seconds": 7.0}]
    worker = WorkerState(0, 4242, ("/l/1",), 0, 3.0, said)
    layers = {
        "containerd": StubLayers(LayerSource((place,), (IMAGE,), to_text(LAYER))),
        "podman": StubLayers(LayerSource((place,), (IMAGE, OTHER), to_text(LAYER)), "/store/l/1"),
    }
    failed: dict[Digest, PuzzlefsError] = {BROKEN: CorruptError("its metadata is gone")}
    errors = RecentErrors()
    log = logging.getLogger("snapshotter.test_status")
    log.addHandler(errors)
    log.error("something went wrong")
    activity = Activity(lambda: [worker], dict)
    status = Status(node, layers, activity, failed=lambda: failed, cap=Cap(1 << 30), errors=errors)
    address = tmp_path / "snapshotter.sock"
    server = StatusServer(socket_path(address), None, status.take)
    yield address
    server.close()
    log.removeHandler(errors)
    assert not socket_path(address).exists()


def test_the_status_tells_layers_images_workers_and_what_went_wrong(address: Path) -> None:
    told = statusclient.status(address)
    layer = told["layers"][to_text(LAYER)]
    assert (layer["chunks"], layer["local"], layer["ratio"]) == (4, 2, 0.5)
    assert layer["mounts"] == [
        {"of": "containerd", "images": [IMAGE], "mountpoint": "/l/1", "worker": 0},
        {"of": "podman", "images": [IMAGE, OTHER], "mountpoint": "/store/l/1", "worker": None},
    ]
    assert 0 < layer["stored_local"] < layer["stored"]
    assert {name: (image["of"], image["layers"]) for name, image in told["images"].items()} == {
        IMAGE: (["containerd", "podman"], [to_text(LAYER)]),
        OTHER: (["podman"], [to_text(LAYER)]),
    }
    assert told["images"][IMAGE]["ratio"] == 0.5
    assert told["workers"] == [{"number": 0, "pid": 4242, "mounts": 1, "deaths": 0, "seconds": 3.0, "answers": True}]
    assert told["fetching"] == [{"layer": to_text(LAYER), "chunk": "sha256:00", "seconds": 7.0, "worker": 0}]
    assert told["failed"] == {to_text(BROKEN): "its metadata is gone"}
    assert told["cache"]["chunks"] == 2
    assert told["cache"]["max"] == 1 << 30
    assert told["cache"]["used"] == 2 * told["cache"]["recent"] >= 2 * 4096, "a container has read one of two"
    assert told["cache"]["reserve"] == 1 << 28
    assert told["counters"]["bytes"] == {"registry.example/app": 1000}
    assert [error["message"] for error in told["errors"]] == ["something went wrong"]


def test_the_metrics_are_in_prometheus_form(address: Path) -> None:
    families = {family.name: family for family in text_string_to_metric_families(statusclient.metrics(address))}
    (received,) = families["puzzlefs_received_bytes"].samples
    assert (received.labels, received.value) == ({"host": "registry.example"}, 1000)
    (ratio,) = families["puzzlefs_layer_local_ratio"].samples
    assert (ratio.labels, ratio.value) == ({"layer": to_text(LAYER)}, 0.5)
    assert families["puzzlefs_cache_reserve_bytes"].samples[0].value == 1 << 28
    assert families["puzzlefs_cache_recent_bytes"].samples[0].value == families["puzzlefs_cache_bytes"].samples[0].value / 2
    buckets = [s for s in families["puzzlefs_read_seconds"].samples if s.name.endswith("_bucket")]
    assert buckets[-1].labels["le"] == "+Inf"
    assert [s.value for s in buckets] == sorted(s.value for s in buckets), "buckets are cumulative"


def test_only_root_may_ask(address: Path) -> None:
    assert stat.S_IMODE(socket_path(address).stat().st_mode) == 0o600


def test_the_port_tells_metrics_and_nothing_else(tmp_path: Path, node: Node) -> None:
    layers = {"containerd": StubLayers(LayerSource((), (IMAGE,), to_text(LAYER)))}
    status = Status(node, layers, Activity(list, dict), failed=dict, cap=None, errors=RecentErrors())
    place = f"127.0.0.1:{_free_port()}"
    server = StatusServer(tmp_path / "status.sock", place, status.take)
    try:
        with urllib.request.urlopen(f"http://{place}/metrics") as answer:
            assert b"puzzlefs_build_info" in answer.read()
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://{place}/status")
        assert refused.value.code == 404
        refused.value.close()
    finally:
        server.close()


def test_where_no_daemon_answers_the_error_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"x-status\.sock"):
        statusclient.status(tmp_path / "x.sock")


@pytest.mark.parametrize("text", ["0.0.0.0:9464", "example.com:1", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:x", "[::2]:1"])
def test_metrics_are_told_to_this_machine_alone(text: str) -> None:
    with pytest.raises(InvalidError, match="loopback"):
        loopback(text)


def test_hosts_are_bounded() -> None:
    counted = {f"packs(h{number}/app)": number for number in range(HOSTS_MAX + 5)} | {f"h{HOSTS_MAX}/other": 1}
    hosts = by_host(counted)
    assert len(hosts) == HOSTS_MAX + 1
    assert sum(hosts.values()) == sum(counted.values())
    assert hosts[f"h{HOSTS_MAX}"] == HOSTS_MAX + 1


def test_as_many_errors_are_kept_as_a_person_reads() -> None:
    errors = RecentErrors()
    for number in range(ERRORS_KEPT + 3):
        errors.emit(logging.LogRecord("x", logging.ERROR, "f", 1, "error %d", (number,), None))
    kept = errors.list()
    assert len(kept) == ERRORS_KEPT
    assert kept[-1]["message"] == f"error {ERRORS_KEPT + 2}"
