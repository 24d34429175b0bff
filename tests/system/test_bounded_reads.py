"""A container's read that cannot be had ends in time, and the log says in one line what was read, and from where."""

from __future__ import annotations

import errno
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from snapshotter.chunkstore.reads import HUNG_AFTER
from snapshotter.daemon.statusclient import metrics, status
from tests.support import samples
from tests.support.faultproxy import FaultProxy
from tests.support.images import Layer, write_image
from tests.system.conftest import Node, Published, Server
from tests.system.test_fault_proxy import faulty_node, pull

pytestmark = pytest.mark.root

FAULTS = ("stall", "drip", "corrupt", "refuse", "garbage", "wrong range", "401", "403", "404", "429", "503")
"""What no number of attempts overcomes."""
CHUNK = re.compile(r"\bchunk sha256:[0-9a-f]{64}\b")
PATIENCE = 60.0


@pytest.fixture
def large(server: Server, tmp_path: Path) -> Published:
    """An image with a file for each fault, of so many chunks that no other read brings all of them along."""
    layer = Layer()
    layer.directory(b"data")
    for number in range(len(FAULTS) + 1):
        layer.file(b"data/file-%d" % number, samples.noise(2_000_000, 300 + number))
    make = lambda made: write_image(made / "bounded", "v1", [samples.base().tar(), layer.tar()])  # noqa: E731
    return server.publish("bounded", make, tmp_path)


@pytest.fixture
def faulty(server: Server) -> Iterator[tuple[Node, FaultProxy]]:
    with faulty_node(server, seed=1) as made:
        yield made


def test_one_line_names_image_file_chunk_and_host(faulty: tuple[Node, FaultProxy], large: Published) -> None:
    node, proxy = faulty
    with proxy.behaving():
        reference = pull(node, proxy, large)
        node.containerd.run(reference, "/bin/busybox", "cat", "/bin/busybox", snapshotter="puzzlefs")
    for number, fault in enumerate(FAULTS):
        proxy.faults, proxy.rate = (fault,), 1.0
        script = f"dd if=/data/file-{number} of=/dev/null bs=4096 count=1 2>/dev/null || echo failed"
        assert node.containerd.run(reference, "/bin/sh", "-c", script, snapshotter="puzzlefs").text == "failed\n", fault
        time.sleep(1)  # of a flood in one second, not every line is logged
    log = node.snapshotter.log.read_text().splitlines()
    for number, fault in enumerate(FAULTS):
        lines = [line for line in log if "read failed: " in line and f" file /data/file-{number}," in line]
        assert lines, fault
        for line in lines:
            image, _, rest = line.partition(f" file /data/file-{number},")
            assert reference in image, f"{fault}: no image in {line}"
            assert CHUNK.search(rest), f"{fault}: no chunk in {line}"
            assert proxy.address in rest, f"{fault}: no host in {line}"


def test_a_read_that_waits_for_long_is_shown_while_it_waits(faulty: tuple[Node, FaultProxy], large: Published) -> None:
    """As a gauge of reads that have waited over five seconds, and with its layer and chunk in the status."""
    node, proxy = faulty
    config = node.snapshotter.config
    config.write_text(config.read_text().replace("read_timeout = 5", "read_timeout = 15"))
    node.snapshotter.terminate()
    node.start_again()
    with proxy.behaving():
        pull(node, proxy, large)
    assert hung(node) == {"read": 0, "fetch": 0}
    proxy.faults, proxy.rate, proxy.stall = ("stall",), 1.0, 1000.0
    (path,) = (node.snapshotter.root / "l").glob(f"*/data/file-{len(FAULTS)}")
    outcomes: list[int | None] = []

    def read() -> None:
        try:
            with path.open("rb", buffering=0) as file:
                file.read(4096)
            outcomes.append(None)
        except OSError as error:
            outcomes.append(error.errno)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        until(lambda: hung(node)["fetch"] > 0)
        assert hung(node)["read"] > 0
        (waiting,) = {(read["layer"], read["seconds"] > HUNG_AFTER) for read in status(node.snapshotter.socket)["fetching"]}
        assert waiting == (layer_of(node, path), True)
    finally:
        reader.join()
    assert outcomes == [errno.EIO]
    until(lambda: hung(node) == {"read": 0, "fetch": 0})


def hung(node: Node) -> dict[str, float]:
    """The gauge of reads that have waited for over `HUNG_AFTER` seconds, by kind, as Prometheus sees it."""
    families = text_string_to_metric_families(metrics(node.snapshotter.socket))
    (family,) = [family for family in families if family.name == "puzzlefs_reads_hung"]
    return {sample.labels["kind"]: sample.value for sample in family.samples}


def layer_of(node: Node, path: Path) -> str:
    """The layer whose mount `path` is in, by the daemon's own account."""
    layers = status(node.snapshotter.socket)["layers"]
    (found,) = [
        layer for layer, told in layers.items() if any(path.is_relative_to(mount["mountpoint"]) for mount in told["mounts"])
    ]
    return str(found)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
