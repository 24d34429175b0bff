"""The node of the system tests, its snapshotter run by systemd from the shipped unit and configuration."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.containerd import Containerd
from tests.support.goclient import GoClient
from tests.system.conftest import Node, Server, loaded, server
from tests.systemd.inside.unit import Unit

__all__ = ["loaded", "server"]


@pytest.fixture(scope="session")
def node(server: Server) -> Iterator[Node]:
    """One for all tests: they are about what goes on."""
    directory = Path(tempfile.mkdtemp(prefix="n-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        unit = Unit(directory, [server.relay.address], directory / "c" / "containerd.sock")
        stack.callback(unit.stop)
        containerd = Containerd(directory / "c", unit.socket)
        stack.callback(containerd.stop)
        # no test here has a use for the client in Go, which is not built
        yield Node(directory, containerd, unit, server.relay, GoClient(directory / "none", containerd))


@pytest.fixture
def unit(node: Node) -> Unit:
    """The service."""
    assert isinstance(node.snapshotter, Unit)
    return node.snapshotter
