"""Who pulls: credentials that came with a pull reach the workers when they need them, and are told nobody else."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import grpc
import pytest

from snapshotter.api import cri_pb2
from snapshotter.daemon.criproxy import PULL
from snapshotter.daemon.statusclient import metrics, status
from snapshotter.format.digest import chain_id, from_text, to_text
from tests.support import processes, samples
from tests.support.images import write_image
from tests.support.registry import FakeRegistry, TokenAuth
from tests.support.snapshotter import puzzlefs
from tests.system.conftest import Node, Server, started

pytestmark = pytest.mark.root

SECRET = "correct-horse-battery-staple-4711"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRegistry]:
    """A registry that gives tokens, good for two seconds, to one user; with a converted image."""
    with FakeRegistry(auth=TokenAuth("ann", SECRET, expires_in=2)) as fake:
        image = write_image(tmp_path / "image", "v1", samples.plain())
        login = {"auths": {fake.host: {"username": "ann", "password": SECRET}}}
        (tmp_path / "config.json").write_text(json.dumps(login))
        with monkeypatch.context() as logged_in:
            logged_in.setenv("DOCKER_CONFIG", str(tmp_path))
            puzzlefs("convert", image.reference, f"docker://{fake.host}/app:1")
        yield fake


def chain(registry: FakeRegistry) -> str:
    """The chain ID of the image."""
    held = registry.repository("app")
    manifest = json.loads(held.manifests[held.tags["1"]][1])
    if "manifests" in manifest:
        manifest = json.loads(held.manifests[manifest["manifests"][0]["digest"]][1])
    found = None
    for text in json.loads(held.blobs[manifest["config"]["digest"]])["rootfs"]["diff_ids"]:
        found = chain_id(found, from_text(text))
    assert found is not None
    return to_text(found)


@contextlib.contextmanager
def kubelets_node(registry: FakeRegistry) -> Iterator[Node]:
    """A node whose kubelet asks us for images: nobody else knows the password."""
    server = cast("Server", SimpleNamespace(relay=SimpleNamespace(address=registry.host)))
    with started(server, cri="none.invalid/pause:1", settings="[cri]\nimage_service = true") as node:
        private, node.containerd.namespace = node.containerd.namespace, "k8s.io"
        try:
            yield node
        finally:
            images = node.containerd.ctr("images", "list", "-q").split()
            node.containerd.ctr("images", "remove", "--sync", *images)
            node.containerd.namespace = private


def pull(node: Node, image: str, password: str) -> None:
    """What the kubelet sends for a pod with an image pull secret."""
    auth = cri_pb2.AuthConfig(username="ann", password=password)
    request = cri_pb2.PullImageRequest(image=cri_pb2.ImageSpec(image=image), auth=auth)
    with grpc.insecure_channel(f"unix://{node.snapshotter.socket}") as channel:
        call = channel.unary_unary(PULL, request_serializer=None, response_deserializer=None)
        call(request.SerializeToString(), timeout=60)


def everything_written(node: Node) -> Iterator[tuple[str, bytes]]:
    """All that the daemon and its workers have written, show, or were started with."""
    yield "log", node.snapshotter.log.read_bytes()
    yield "status", json.dumps(status(node.snapshotter.socket)).encode()
    yield "metrics", metrics(node.snapshotter.socket).encode()
    for path in node.snapshotter.root.rglob("*"):
        if path.is_file() and not path.is_relative_to(node.snapshotter.root / "l"):
            yield str(path), path.read_bytes()
    for pid in processes.find(lambda words: any(str(node.snapshotter.root) in word for word in words)):
        yield f"arguments of {pid}", Path(f"/proc/{pid}/cmdline").read_bytes()


def test_credentials_of_a_pull_outlive_its_tokens_and_are_told_nobody(registry: FakeRegistry) -> None:
    """A worker whose token has expired asks the daemon; when the password has changed as well, what is cached goes on."""
    with kubelets_node(registry) as node:
        pull(node, f"{registry.host}/app:1", SECRET)
        with node.containerd.snapshot(chain(registry), node.directory / "v", "puzzlefs") as root:
            registry.revoke_tokens()
            assert (root / "data/first").read_bytes() == samples.noise(300_000, 1)
            time.sleep(2.5)
            registry.revoke_tokens()
            asked = len(registry.matching("/token"))
            assert (root / "more/file").read_bytes() == samples.noise(300_000, 6)
            assert len(registry.matching("/token")) > asked, "the token was renewed"

            registry.auth = TokenAuth("ann", "another", expires_in=2)
            registry.revoke_tokens()
            time.sleep(2.5)
            with pytest.raises(OSError, match="Input/output error"):
                (root / "data/second").read_bytes()
            assert (root / "data/first").read_bytes() == samples.noise(300_000, 1), "what was read before is still here"
        log = node.snapshotter.log.read_text()
        assert f"refuses the user name or password for {registry.host}" in log, log[-3000:]
        found = [where for where, written in everything_written(node) if SECRET.encode() in written]
        assert found == [], "the password stands there"


def test_a_pull_without_the_password_says_which_registry_refused(registry: FakeRegistry) -> None:
    """The error that the kubelet shows names the registry, and no secret."""
    with kubelets_node(registry) as node, pytest.raises(grpc.RpcError) as caught:
        pull(node, f"{registry.host}/app:1", "wrong-password-0815")
    said = str(caught.value.details())
    assert registry.host in said
    assert "wrong-password-0815" not in said
