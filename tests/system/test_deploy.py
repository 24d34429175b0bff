"""What ``deploy/`` ships does what it says, on this machine's containerd."""

from __future__ import annotations

import contextlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.daemon import config
from tests.support import cri, tools
from tests.support.containerd import Containerd, major_version
from tests.system.conftest import Node, Published, Server

DEPLOY = tools.ROOT / "deploy"


@pytest.fixture
def deployed(node: Node) -> Iterator[Containerd]:
    """containerd with the shipped lines in its configuration, beside the node's own."""
    file = DEPLOY / f"containerd/config-{major_version()}.x.toml"
    containerd = Containerd(node.directory / "d", node.snapshotter.socket, file)
    private = containerd.namespace
    yield containerd
    containerd.namespace = private  # CRI's namespace may have cgroups that are not ours
    containerd.stop()
    for cgroups in Path("/sys/fs/cgroup").glob("*/k8s.io"):
        with contextlib.suppress(OSError):
            cgroups.rmdir()


@pytest.mark.root
def test_cri_pulls_lazily(deployed: Containerd, node: Node, server: Server, plain: Published) -> None:
    """A pull as the kubelet does it: the image is there, mounted, and none of its layers was downloaded."""
    reference = node.reference(plain.lazy)
    cri.pull(deployed.socket, reference)
    deployed.namespace = "k8s.io"
    assert reference in deployed.ctr("images", "ls", "-q").split()
    stored = deployed.ctr("content", "ls", "-q").split()
    assert not {str(layer["digest"]) for layer in server.layers(plain.lazy)} & set(stored)
    assert deployed.run(reference, "/bin/busybox", "cat", "/data/hello", snapshotter="puzzlefs").text == "hello from a layer\n"


@pytest.mark.root
def test_cri_pulls_ordinary_images(deployed: Containerd, node: Node, plain: Published) -> None:
    """With the same configuration, images that were never converted go on working."""
    reference = node.reference(plain.ordinary)
    cri.pull(deployed.socket, reference)
    deployed.namespace = "k8s.io"
    assert deployed.run(reference, "/bin/busybox", "cat", "/data/hello", snapshotter="puzzlefs").text == "hello from a layer\n"


def test_default_configuration_is_the_default(tmp_path: Path) -> None:
    """The shipped configuration of the daemon changes nothing, and each line in it that is commented out is taken."""
    text = (DEPLOY / "puzzlefs/config.toml").read_text()
    assert config.parse(tomllib.loads(text)) == config.Config()
    every = re.sub(r"^#(?=\w+ = |\[)", "", text, flags=re.MULTILINE)
    read = config.parse(tomllib.loads(every))
    assert read.root == config.Config().root
    assert read.cache_max_bytes is not None
    assert list(read.registries) == ["registry.example:5000"]
