"""Who may ask the daemon, and what it makes of what it is told."""

from __future__ import annotations

import stat

import grpc
import pytest

from snapshotter.api import snapshots_pb2, snapshots_pb2_grpc
from tests.support.processes import run
from tests.support.snapshotter import program
from tests.system.conftest import Node

pytestmark = pytest.mark.root


def test_sockets_are_roots_alone(node: Node) -> None:
    """Whatever the umask: all that the daemon listens at is for root."""
    below = [*node.snapshotter.socket.parent.iterdir(), *node.snapshotter.root.rglob("*")]
    found = [path for path in below if path.is_socket()]
    assert node.snapshotter.socket in found
    assert len(found) > 2, "the status', and those of the workers"
    for path in found:
        assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (0, 0o600), path


def test_nobody_else_can_connect(node: Node) -> None:
    """Tried by another user, for whom the directories on the way are open."""
    for path in (node.directory, node.snapshotter.directory):
        path.chmod(0o755)
    script = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", script]
    for path in node.snapshotter.socket.parent.iterdir():
        if path.is_socket():
            assert "PermissionError" in run(*words, path, check=False).stderr


def test_a_socket_in_an_open_directory_is_refused(node: Node) -> None:
    """Whoever can write there could put a socket of their own in its place."""
    place = node.directory / "open"
    place.mkdir()
    place.chmod(0o777)
    places = ("--root", node.directory / "other", "--address", place / "s.sock")
    done = run(program("puzzlefs-snapshotter"), *places, check=False)
    assert done.returncode == 1
    assert f"{place}, above {place}/s.sock, can be written by others" in done.stderr


def test_a_key_cannot_forge_a_log_line(node: Node) -> None:
    """What a client names is logged on the line that is about it."""
    forged = "ERROR snapshotter.daemon: all your layers are gone"
    with grpc.insecure_channel(f"unix://{node.snapshotter.socket}") as channel:
        stub = snapshots_pb2_grpc.SnapshotsStub(channel)
        with pytest.raises(grpc.RpcError):
            stub.Commit(snapshots_pb2.CommitSnapshotRequest(name="n" * 5000, key=f"x\n{forged}\n\x1b[2J"), timeout=10)
    lines = node.snapshotter.log.read_text().splitlines()
    assert forged not in lines
    assert any(forged in line and line.startswith("WARNING") for line in lines), lines
    assert all(line.isprintable() for line in lines)
