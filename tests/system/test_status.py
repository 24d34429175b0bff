"""``puzzlefs status`` of a daemon that serves an image, and of none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.snapshotter import puzzlefs
from tests.system.conftest import Node, Published

pytestmark = pytest.mark.root


def test_status(node: Node, plain: Published) -> None:
    reference = node.pull_lazily(plain.lazy)
    node.containerd.run(reference, "/bin/busybox", "cat", "/data/hello", snapshotter="puzzlefs")
    text = puzzlefs("status", "--socket", node.snapshotter.socket).stdout
    assert reference in text
    assert "WORKER" in text

    def tell() -> dict[str, Any]:
        return json.loads(puzzlefs("status", "--socket", node.snapshotter.socket, "--json").stdout)  # type: ignore[no-any-return]

    # What was read is written to the cache a moment later, when it is quiet.
    node.snapshotter.service.wait_until(lambda: tell()["images"][reference]["local"] > 0, "a cached chunk in the status")
    told = tell()
    assert told["images"][reference]["local"] < told["images"][reference]["chunks"]
    assert sum(worker["mounts"] for worker in told["workers"]) == len(told["layers"]) > 0


def test_no_daemon(node: Node) -> None:
    node.snapshotter.terminate()
    done = puzzlefs("status", "--socket", node.snapshotter.socket, check=False)
    assert done.returncode == 4
    assert done.stderr.startswith("puzzlefs: no puzzlefs-snapshotter answers at ")
    assert done.stderr.count("\n") == 1
