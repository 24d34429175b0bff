"""The daemon ends cleanly and goes on from its state."""

from __future__ import annotations

import os

import pytest

from tests.support import mounts, trees
from tests.system.conftest import Node, Published, Server

pytestmark = pytest.mark.root


def test_sigterm_ends_cleanly(node: Node, plain: Published) -> None:
    """Exit status 0, soon, and the socket gone."""
    node.pull_lazily(plain.lazy)
    status, seconds = node.snapshotter.terminate()
    assert status == 0, node.snapshotter.service.log_end()
    assert seconds < 10
    assert not node.snapshotter.socket.exists()


def test_restart_without_the_registry(node: Node, server: Server, plain: Published) -> None:
    """A start mounts every layer again from local state; what was read before is readable with no registry at all."""
    node.pull_lazily(plain.lazy)
    chain_id = server.chain_id(plain.lazy)
    with node.containerd.snapshot(chain_id, node.directory / "before", "puzzlefs") as root:
        expected = trees.look(os.fsencode(root))
    assert node.snapshotter.terminate()[0] == 0
    mounts.unmount_all(node.snapshotter.root)  # as a reboot does
    with node.relay.gone():
        node.start_again()
        with node.containerd.snapshot(chain_id, node.directory / "after", "puzzlefs") as root:
            assert trees.differences(expected, trees.look(os.fsencode(root)), [b"."]) == []


def test_restart_keeps_snapshots(node: Node, plain: Published) -> None:
    """containerd finds after a restart what it had before, and starts containers as before."""
    reference = node.pull_lazily(plain.lazy)
    before = node.containerd.snapshots("puzzlefs")
    node.snapshotter.terminate()
    node.start_again()
    assert node.containerd.snapshots("puzzlefs") == before
    assert (
        node.containerd.run(reference, "/bin/busybox", "cat", "/data/hello", snapshotter="puzzlefs").text
        == "hello from a layer\n"
    )


def test_killed_daemon_starts_again(node: Node, plain: Published) -> None:
    """After SIGKILL nothing has to be repaired by hand."""
    reference = node.pull_lazily(plain.lazy)
    node.snapshotter.service.process.kill()
    node.snapshotter.service.process.wait()
    node.start_again()
    assert (
        node.containerd.run(reference, "/bin/busybox", "cat", "/data/hello", snapshotter="puzzlefs").text
        == "hello from a layer\n"
    )
