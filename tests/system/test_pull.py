"""``puzzlefs pull``: the daemon's work, and the end of it when nobody waits any more."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.support.relay import Relay
from tests.support.snapshotter import program
from tests.system.conftest import Node, Published, Server, started

pytestmark = pytest.mark.root

INTERRUPTED = 130
SLOW = 0.5
"""Seconds before every answer of the registry: an image of several layers takes a multiple of it."""


def test_what_it_says(node: Node, plain: Published) -> None:
    """Steps for a person on stderr, the result for a program on stdout: bytes of an ordinary image are all of its layers'."""
    done = node.snapshotter.pull(node.reference(plain.ordinary), node.containerd.namespace, "--json")
    result = json.loads(done.stdout)
    assert (result["layers"], result["lazy_layers"]) == (3, 0)
    assert [line.split()[3] for line in done.stderr.splitlines()] == ["downloaded,"] * 3
    again = node.snapshotter.pull(node.reference(plain.ordinary), node.containerd.namespace, "--json")
    assert ["here already" in line for line in again.stderr.splitlines()] == [True] * 3
    assert json.loads(again.stdout)["bytes_received"] < result["bytes_received"] / 10
    lazy = node.snapshotter.pull(node.reference(plain.lazy), node.containerd.namespace)
    assert lazy.stdout.startswith(f"{node.reference(plain.lazy)}@sha256:")


@contextlib.contextmanager
def half_pulled(server: Server, plain: Published) -> Iterator[tuple[Node, str, subprocess.Popen[str]]]:
    """A node, the reference of an ordinary image at a slow registry, and the command that has pulled the first layer of it."""
    relay = Relay(server.registry.endpoint, delay=SLOW)
    try:
        with started(server, registries=[relay.address]) as node:
            reference = f"{relay.address}/{plain.ordinary}"
            words = ["pull", "--socket", str(node.snapshotter.socket), "-n", node.containerd.namespace, reference]
            with subprocess.Popen([program("puzzlefs"), *words], stderr=subprocess.PIPE, text=True) as command:
                assert command.stderr is not None
                assert "layer 1/3" in command.stderr.readline()
                yield node, reference, command
    finally:
        relay.close()


def test_interrupted(server: Server, plain: Published) -> None:
    """The command ends at once, the daemon soon after: no image, no half-made snapshot, no lease that holds anything."""
    with half_pulled(server, plain) as (node, _, command):
        command.send_signal(signal.SIGTERM)  # ends it as SIGINT does, which whoever runs the tests may ignore
        assert command.wait(timeout=10) == INTERRUPTED
        deadline = time.monotonic() + 30
        while node.containerd.ctr("leases", "ls", "-q"):
            assert time.monotonic() < deadline, f"still being pulled\n{node.snapshotter.service.log_end()}"
            time.sleep(0.1)
        assert node.containerd.ctr("images", "ls", "-q") == ""
        assert [row for row in node.containerd.snapshots("puzzlefs") if row[0].startswith("extract-")] == []
        node.must_be_clear()


def test_a_daemon_that_ends_meanwhile(server: Server, plain: Published) -> None:
    """The command says so in one line, and the next daemon pulls the image."""
    with half_pulled(server, plain) as (node, reference, command):
        node.snapshotter.terminate()
        assert command.stderr is not None
        assert command.stderr.read().splitlines()[-1].endswith(f"the pull of {reference}: pull again once it runs")
        assert command.wait(timeout=10) == 4
        node.start_again()
        assert node.snapshotter.pull(reference, node.containerd.namespace).stdout.startswith(reference)
