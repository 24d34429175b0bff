"""Who pulls: credentials that came with a pull reach the workers when they need them, and are told nobody else."""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
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
from tests.support.images import Layer, write_image
from tests.support.registry import FakeRegistry, Fault, TokenAuth
from tests.support.snapshotter import puzzlefs
from tests.system.conftest import Node, Server, started

pytestmark = pytest.mark.root

SECRET = "correct-horse-battery-staple-4711"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[FakeRegistry]:
    """A registry that gives tokens, good for two seconds, to one user; with a converted image."""
    with FakeRegistry(auth=TokenAuth("ann", SECRET, expires_in=2)) as fake:
        publish(fake, tmp_path, "app:1", samples.plain())
        yield fake


def publish(registry: FakeRegistry, directory: Path, name: str, layers: Sequence[bytes]) -> None:
    """Put a converted image into the registry, whose password nobody is told but who does it."""
    image = write_image(directory / name.partition(":")[0], "v1", layers)
    login = {"auths": {registry.host: {"username": "ann", "password": SECRET}}}
    (directory / "config.json").write_text(json.dumps(login))
    with pytest.MonkeyPatch.context() as logged_in:
        logged_in.setenv("DOCKER_CONFIG", str(directory))
        puzzlefs("convert", image.reference, f"docker://{registry.host}/{name}")


def layers_of(files: Mapping[str, bytes]) -> list[bytes]:
    """A program, and a layer with `files` in the directory ``data``."""
    layer = Layer()
    layer.directory(b"data")
    for name, content in files.items():
        layer.file(f"data/{name}".encode(), content)
    return [samples.base().tar(), layer.tar()]


def chain(registry: FakeRegistry, repository: str = "app") -> str:
    """The chain ID of the image."""
    held = registry.repository(repository)
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


def test_tokens_that_live_two_seconds_do_for_reading_that_takes_longer(registry: FakeRegistry, tmp_path: Path) -> None:
    """The registry counts the seconds itself; nobody who reads hears of it."""
    files = {f"file-{number}": samples.noise(900_000, number) for number in range(12)}
    publish(registry, tmp_path, "long:1", layers_of(files))
    registry.auth = TokenAuth("ann", SECRET, expires_in=2, lifetime=2.0)
    registry.inject(Fault(delay=0.3), path="/blobs/", times=1_000_000)
    with kubelets_node(registry) as node:
        pull(node, f"{registry.host}/long:1", SECRET)
        registry.forget()
        with node.containerd.snapshot(chain(registry, "long"), node.directory / "v", "puzzlefs") as root:
            assert {name: (root / "data" / name).read_bytes() for name in files} == files
    assert len(registry.matching("/token")) > 3, "the reading is over before the tokens are"


LOCAL = ("/bin/busybox", "md5sum", "/data/first")
REMOTE = ("/bin/busybox", "md5sum", "/data/second")
EVERYTHING = ("/bin/sh", "-c", "cat /bin/busybox /data/* | md5sum")
BOUND = 60.0
"""Seconds in which what must fail has failed, on a machine however busy; a read may take 5."""


def test_without_credentials_and_then_without_the_registry(registry: FakeRegistry, tmp_path: Path) -> None:
    """A running container goes on with what is local, an image that is all here starts, everything else fails soon, and says
    which host it is about."""
    publish(registry, tmp_path, "whole:1", layers_of({"all": samples.noise(500_000, 70)}))
    publish(registry, tmp_path, "other:1", layers_of({"none": samples.noise(500_000, 71)}))
    part, whole, other = (f"{registry.host}/{name}" for name in ("app:1", "whole:1", "other:1"))
    with kubelets_node(registry) as node:
        for image in (part, whole):
            pull(node, image, SECRET)
        expected = node.containerd.run(whole, *EVERYTHING, snapshotter="puzzlefs").text
        with node.containerd.detached(part, "/bin/busybox", "sleep", "1000", snapshotter="puzzlefs") as (container, _):

            def inside(*command: str) -> str:
                return node.containerd.ctr("tasks", "exec", "--exec-id", uuid.uuid4().hex, container, *command, check=False)

            local = inside(*LOCAL)
            assert "/data/first" in local
            registry.auth = TokenAuth("ann", "another", expires_in=2)
            registry.revoke_tokens()
            for state in ("expired", "gone"):
                if state == "gone":
                    registry.close()
                drop_caches()
                begun = time.monotonic()
                assert inside(*LOCAL) == local, state
                assert inside(*REMOTE) == "", state
                assert node.containerd.run(whole, *EVERYTHING, snapshotter="puzzlefs").text == expected, state
                with pytest.raises(grpc.RpcError) as refused:
                    pull(node, other, SECRET)
                assert registry.host in str(refused.value.details()), state
                assert time.monotonic() - begun < BOUND, state
                lines = [line for line in node.snapshotter.log.read_text().splitlines() if "file /data/second," in line]
                assert any(part in line and registry.host in line.partition("file /data/second")[2] for line in lines), state


def drop_caches() -> None:
    """Have what containers read asked for again, of workers and disks."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def test_a_pull_without_the_password_says_which_registry_refused(registry: FakeRegistry) -> None:
    """The error that the kubelet shows names the registry, and no secret."""
    with kubelets_node(registry) as node, pytest.raises(grpc.RpcError) as caught:
        pull(node, f"{registry.host}/app:1", "wrong-password-0815")
    said = str(caught.value.details())
    assert registry.host in said
    assert "wrong-password-0815" not in said
