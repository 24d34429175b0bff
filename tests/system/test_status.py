"""``puzzlefs status`` of a daemon that serves an image, and of none."""

from __future__ import annotations

import json

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
    told = json.loads(puzzlefs("status", "--socket", node.snapshotter.socket, "--json").stdout)
    assert 0 < told["images"][reference]["local"] < told["images"][reference]["chunks"]
    assert sum(worker["mounts"] for worker in told["workers"]) == len(told["layers"]) > 0


def test_no_daemon(node: Node) -> None:
    node.snapshotter.terminate()
    done = puzzlefs("status", "--socket", node.snapshotter.socket, check=False)
    assert done.returncode == 4
    assert done.stderr.startswith("puzzlefs: no puzzlefs-snapshotter answers at ")
    assert done.stderr.count("\n") == 1
