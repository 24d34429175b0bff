"""``puzzlefs doctor`` on a node that really runs: it finds what is right, and what was broken on purpose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.snapshotter import puzzlefs
from tests.system.conftest import Node, Published, Server

pytestmark = pytest.mark.root


def _examined(node: Node, *more: str, status: int) -> dict[str, dict[str, str]]:
    """The findings of ``puzzlefs doctor`` by check; the command must end with `status`."""
    config = node.directory / "doctor.toml"
    settings = node.snapshotter.config.read_text()
    config.write_text(f'root = "{node.snapshotter.root}"\naddress = "{node.snapshotter.socket}"\n{settings}')
    done = puzzlefs("doctor", "--json", "--config", config, "-a", node.containerd.socket, *more, check=False)
    assert done.returncode == status, done.stderr + done.stdout
    return {found["check"]: found for found in json.loads(done.stdout)["findings"]}


def test_what_it_finds(node: Node, server: Server, plain: Published) -> None:
    """A lazy image, an ordinary one, and one that a client downloaded; and the registry of the first."""
    lazy = node.pull_lazily(plain.lazy)
    ordinary = node.pull(plain.ordinary, "puzzlefs")
    assert node.containerd.run(lazy, "/bin/busybox", "cat", "/data/hello", snapshotter="puzzlefs").text
    found = _examined(node, lazy, status=0)

    for check in ("kernel.fuse-device", "kernel.fuse-protocol", "kernel.overlayfs", "daemon.socket", "daemon.root"):
        assert found[check]["level"] == "ok", found[check]
    assert found["kernel.fuse-protocol"]["text"].startswith("FUSE 7."), "root asks the kernel itself"
    assert str(node.snapshotter.socket) in found["containerd.proxy-plugin"]["text"]
    assert found["containerd.plugin-loaded"]["level"] == "ok"
    assert "one mount namespace" in found["daemon.mount-propagation"]["text"]
    assert found["daemon.mounts"]["text"].endswith("no read waits")
    assert "complains of nothing" in found["daemon.health"]["text"]
    for check in ("registry.manifest", "registry.format", "registry.ranges"):
        assert found[check]["level"] == "ok", found[check]

    name = node.containerd.namespace
    assert found[f"image.{name}/{lazy}"]["text"].startswith("lazy: ")
    assert "0.0 MB of its" in found[f"image.{name}/{lazy}"]["text"], "no layer was downloaded"
    assert found[f"image.{name}/{ordinary}"]["text"].startswith("an ordinary image")

    listed = {
        line.split()[1]: line.split()[2:] for line in puzzlefs("images", "-a", node.containerd.socket).stdout.splitlines()
    }
    assert listed[lazy][0] == "/".join([str(len(server.layers(plain.lazy)))] * 2)
    quiet = puzzlefs("images", "-a", node.containerd.socket, "--lazy", "--quiet").stdout
    assert quiet == f"{name} {lazy}\n"

    node.containerd.ctr("content", "fetch", "--plain-http", lazy)
    downloaded = _examined(node, status=0)[f"image.{name}/{lazy}"]
    assert downloaded["level"] == "warn"
    assert "yet downloaded" in downloaded["text"]


def test_what_is_broken(node: Node) -> None:
    """A daemon that is gone, a socket for everybody, an image that is not there: said, and the exit status is 7."""
    node.snapshotter.socket.chmod(0o666)
    found = _examined(node, f"{node.relay.address}/nothing:here", status=7)
    assert found["daemon.socket"]["level"] == "fail"
    assert "chmod 600" in found["daemon.socket"]["advice"]
    assert found["registry.manifest"]["level"] == "fail"

    node.snapshotter.terminate()
    assert "does not run" in _examined(node, status=7)["daemon.socket"]["text"]


def test_for_a_person(node: Node) -> None:
    """Without --json: one line a finding, what to type below it, and the counts; nothing is left mounted."""
    done = puzzlefs("doctor", "-a", node.directory / "nobody.sock", "--no-images", check=False)
    assert done.returncode == 7
    lines = done.stdout.splitlines()
    assert any(line.startswith("fail containerd.version ") and "nobody.sock" in line for line in lines)
    assert any(line.startswith("     → ") for line in lines)
    assert lines[-1].endswith(" fail")
    assert "puzzlefs-doctor" not in Path("/proc/self/mountinfo").read_text()


def test_arguments_are_checked() -> None:
    assert puzzlefs("doctor", "--config", "/nowhere.toml", check=False).returncode == 7
    assert puzzlefs("doctor", "Not A Reference", check=False).returncode == 2
