"""A pod's life as the kubelet leads it, over CRI's API, with containerd 1.6, 1.7 and 2.x configured as ``deploy/`` says."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import samples, tools
from tests.support.images import write_image
from tests.support.releases import FORKY, MACHINE, RELEASES, Release
from tests.system.conftest import Node, Published, Server, started

pytestmark = pytest.mark.root

NAMESPACE = "k8s.io"
EVERYTHING = ("/bin/sh", "-c", "cat /data/hello; dd if=/dev/zero of=/written bs=1k count=300 2>/dev/null; cat /more/* | wc -c")
ANNOTATIONS = "disable_snapshot_annotations = false"


@pytest.fixture
def pause(server: Server, tmp_path: Path) -> Published:
    """An image that keeps a pod's namespaces."""
    command = ("/bin/busybox", "sleep", "100000")
    return server.publish("pause", lambda made: write_image(made / "pause", "v1", [samples.base().tar()], command), tmp_path)


@contextlib.contextmanager
def kubelet(server: Server, program: Path, release: Release, pause: Published, **more: Any) -> Iterator[Node]:
    """A node whose containerd serves CRI, and takes its pause image from our registry."""
    with started(server, program, release=release, cri=f"{server.relay.address}/{pause.lazy}", **more) as node:
        yield node
        remove_images(node)
        assert node.left() == []
    for cgroups in Path("/sys/fs/cgroup").glob("*/k8s.io"):
        with contextlib.suppress(OSError):
            cgroups.rmdir()


def remove_images(node: Node) -> None:
    """All images that CRI has pulled are removed."""
    private, node.containerd.namespace = node.containerd.namespace, NAMESPACE
    images = node.containerd.ctr("images", "list", "-q").split()
    node.containerd.ctr("images", "remove", "--sync", *images)
    node.containerd.namespace = private


@pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.name)
def test_a_pods_life(server: Server, go_program: Path, release: Release, pause: Published, plain: Published) -> None:
    """Pulled lazily, run, measured, removed; then the same with an image that was never converted."""
    with kubelet(server, go_program, release, pause) as node:
        lazy, ordinary = node.reference(plain.lazy), node.reference(plain.ordinary)
        said = node.go("cri", lazy, "-", *EVERYTHING, namespace=NAMESPACE)
        assert said["output"] == "hello from a layer\n300000\n"
        assert said["stored"]
        assert not {str(layer["digest"]) for layer in server.layers(plain.lazy)} & set(said["stored"]), "it was downloaded"
        assert 300_000 <= said["writable"] <= 400_000
        assert said["used"] > 300_000, "what was read of the image takes space"
        assert said["mountpoint"] == expected_mountpoint(node)
        assert said["images"][lazy] > 0
        assert lazy not in said["left"]
        said = node.go("cri", ordinary, "-", *EVERYTHING, namespace=NAMESPACE)
        assert said["output"] == "hello from a layer\n300000\n"
        assert ordinary not in said["left"]


def expected_mountpoint(node: Node) -> str:
    """Where CRI says that images take their space: 2.x knows it from the proxy plugin's exports."""
    if node.containerd.release.version >= (2, 0):
        return str(node.snapshotter.root)
    return str(node.containerd.directory / "root/io.containerd.snapshotter.v1.puzzlefs")


def test_without_annotations(server: Server, go_program: Path, pause: Published, plain: Published) -> None:
    """With `disable_snapshot_annotations` as containerd has it by default: the image says itself where it was pushed to."""

    def disabled(text: str) -> str:
        assert ANNOTATIONS in text
        return text.replace(ANNOTATIONS, ANNOTATIONS.replace("false", "true"))

    with kubelet(server, go_program, MACHINE, pause, change=disabled) as node:
        said = node.go("cri", node.reference(plain.lazy), "-", *EVERYTHING, namespace=NAMESPACE)
        assert said["output"] == "hello from a layer\n300000\n"


def test_a_runtime_of_its_own(server: Server, go_program: Path, pause: Published, plain: Published) -> None:
    """With the lines for one runtime: its pods are started lazily, beside others on overlayfs (containerd 2.x)."""
    lines = (tools.ROOT / "deploy/containerd/runtime-2.x.toml").read_text().replace("version = 3\n", "")

    def own(text: str) -> str:
        kept, changed = re.subn(r'(cri\.v1\.images"\]\n(?:  stats.*\n)?)  snapshotter = "puzzlefs"\n', r"\1", text)
        assert changed == 1
        return kept + lines

    with started(server, go_program, release=FORKY, cri=f"{server.relay.address}/{pause.ordinary}", change=own) as node:
        said = node.go("cri", node.reference(plain.ordinary), "-", *EVERYTHING, namespace=NAMESPACE)
        assert said["output"] == "hello from a layer\n300000\n"
        assert node.containerd.snapshots("puzzlefs") == [], "a pod of the default runtime is on overlayfs"
        said = node.go("cri", node.reference(plain.lazy), "puzzlefs", *EVERYTHING, namespace=NAMESPACE)
        assert said["output"] == "hello from a layer\n300000\n"
        assert not {str(layer["digest"]) for layer in server.layers(plain.lazy)} & set(said["stored"]), "it was downloaded"
        remove_images(node)
