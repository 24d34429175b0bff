"""Real parts for the tests of this tier: one registry for all of them, a node (containerd and snapshotter) for each."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import goclient, mounts, samples
from tests.support.containerd import Containerd
from tests.support.dockerregistry import DockerRegistry
from tests.support.goclient import GoClient
from tests.support.images import Image, chain_id, write_image
from tests.support.processes import CommandError, run
from tests.support.relay import Relay
from tests.support.snapshotter import Snapshotter, puzzlefs


@dataclass(frozen=True, slots=True)
class Published:
    """An image in the registry, ordinary and converted, under references without the registry's host."""

    source: Image
    ordinary: str
    lazy: str


class Server:
    """The registry of the test session. Everybody knows it by its relay's address only, so that no byte goes uncounted."""

    def __init__(self, directory: Path) -> None:
        self.registry = DockerRegistry(directory)
        self.relay = Relay(self.registry.endpoint)
        self._made: dict[str, Published] = {}

    def publish(self, name: str, make: Callable[[Path], Image], directory: Path) -> Published:
        """Put an image and its conversion into repository `name`, once for all tests that ask for it."""
        if name not in self._made:
            image = make(directory)
            published = Published(image, f"{name}:ordinary", f"{name}:puzzlefs")
            self.push(image, published.ordinary)
            self.convert(published.ordinary, published.lazy)
            self._made[name] = published
        return self._made[name]

    def push(self, image: Image, reference: str) -> None:
        """Copy an ordinary image into the registry, as it is."""
        run("skopeo", "copy", "--dest-tls-verify=false", image.reference, f"docker://{self.relay.address}/{reference}")

    def convert(self, source: str, destination: str) -> None:
        """``puzzlefs convert`` within the registry."""
        puzzlefs("convert", *(f"docker://{self.relay.address}/{reference}" for reference in (source, destination)))

    def layers(self, reference: str) -> list[dict[str, object]]:
        """The layer descriptors of an image."""
        repository, _, tag = reference.rpartition(":")
        layers: list[dict[str, object]] = self.registry.manifest(repository, tag)["layers"]
        return layers

    def chain_id(self, reference: str) -> str:
        """The chain ID of an image, from its configuration."""
        repository, _, tag = reference.rpartition(":")
        config = self.registry.manifest(repository, tag)["config"]["digest"]
        return chain_id(json.loads(self.registry.blob(repository, config))["rootfs"]["diff_ids"])


@dataclass(frozen=True, slots=True)
class Node:
    """One machine, as far as images are concerned, and the relay behind which it has the registry.

    `go` is a client of its containerd in Go.
    """

    directory: Path
    containerd: Containerd
    snapshotter: Snapshotter
    relay: Relay
    go: GoClient

    def reference(self, name: str) -> str:
        """The full reference of an image of the session's registry."""
        return f"{self.relay.address}/{name}"

    def pull_lazily(self, name: str) -> str:
        """``puzzlefs pull``; returns the full reference."""
        reference = self.reference(name)
        self.snapshotter.pull(reference, self.containerd.namespace)
        return reference

    def wait_for_cache(self, reference: str) -> None:
        """Return once all chunks of an image that was read to the last are in the cache: they are written a moment later."""

        def is_whole() -> bool:
            said = puzzlefs("status", "--socket", self.snapshotter.socket, "--json").stdout
            image = json.loads(said)["images"][reference]
            return bool(image["local"] == image["chunks"] > 0)

        self.snapshotter.service.wait_until(is_whole, f"all of {reference} in the cache")

    def left(self) -> list[str]:
        """What the snapshotter keeps after containerd has collected its garbage: snapshots, mounts, directories."""
        found = []
        for what in ("s", "l", "layers"):
            found += [f"{what}/{name}" for name in os.listdir(self.snapshotter.root / what)]
        return found + [os.fsdecode(point) for point in mounts.mount_points(self.snapshotter.root)]

    def must_be_clear(self) -> None:
        """Once all containers and images of the namespace are removed, no snapshot, mount or directory may be left."""
        clear(self)
        left = self.left()
        for name in [row[0] for row in self.containerd.snapshots("puzzlefs")][::-1]:  # so that the next test can say something
            self.containerd.ctr("snapshots", "--snapshotter", "puzzlefs", "remove", name, check=False)
        assert left == [], f"{left}\n{self.snapshotter.service.log_end()}"

    def start_again(self) -> None:
        """Start the snapshotter, and wait until containerd has noticed: it connects again after a pause of up to 3 s."""
        self.snapshotter.start()
        self.wait_for_containerd()

    def wait_for_containerd(self) -> None:
        """Return once containerd has noticed that the snapshotter is there again."""
        deadline = time.monotonic() + 15
        while True:
            try:
                # a list of none, containerd gives without asking
                key = f"is-it-there-{time.monotonic_ns()}"
                self.containerd.ctr("snapshots", "--snapshotter", "puzzlefs", "prepare", key)
                self.containerd.ctr("snapshots", "--snapshotter", "puzzlefs", "remove", key, check=False)
                return
            except CommandError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def pull(self, name: str, snapshotter: str) -> str:
        """``ctr images pull`` of an ordinary image; returns the full reference."""
        reference = self.reference(name)
        self.containerd.ctr("images", "pull", "--plain-http", "--snapshotter", snapshotter, reference)
        return reference


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The registry of the session."""
    directory = tmp_path_factory.mktemp("registry")
    server = Server(directory)
    yield server
    server.relay.close()
    server.registry.stop()
    shutil.rmtree(directory)


@pytest.fixture
def node(server: Server) -> Iterator[Node]:
    """A node for one test."""
    with started(server) as node:
        yield node


@contextlib.contextmanager
def started(
    server: Server,
    program: Path = Path("/nonexistent"),
    change: Callable[[str], str] = str,
    registries: Iterable[str] = (),
    settings: str = "",
    **more: Any,
) -> Iterator[Node]:
    """A node; `more` is for its containerd, whose configuration gets `change`, `program` the compiled Go client.

    `registries`: further ones without TLS. `settings`: more of our own configuration.
    """
    # a short path: Unix sockets take 107 bytes
    directory = Path(tempfile.mkdtemp(prefix="n-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        snapshotter = Snapshotter(
            directory / "s",
            plain_http=[server.relay.address, *registries],
            read_timeout=5,
            containerd=directory / "c" / "containerd.sock",
            settings=settings,
        )
        stack.callback(snapshotter.stop)
        root = str(snapshotter.root)
        containerd = Containerd(
            directory / "c", snapshotter.socket, change=lambda text: change(text.replace("/var/lib/puzzlefs", root)), **more
        )
        stack.callback(containerd.stop)
        yield Node(directory, containerd, snapshotter, server.relay, GoClient(program, containerd))


@contextlib.contextmanager
def reachable(directory: Path) -> Iterator[None]:
    """Everybody can pass the directories above meanwhile, as /run/containerd can be: pytest's are the user's alone."""
    before = {path: path.stat().st_mode for path in (directory, *directory.parents)}
    for path, mode in before.items():
        path.chmod(stat.S_IMODE(mode) | 0o011)
    try:
        yield
    finally:
        for path, mode in before.items():
            path.chmod(stat.S_IMODE(mode))


def clear(node: Node) -> None:
    """Remove all containers and images of the namespace."""
    for container in node.containerd.ctr("containers", "list", "-q").split():
        node.containerd.ctr("tasks", "delete", "--force", container, check=False)
        node.containerd.ctr("containers", "delete", container)
    images = node.containerd.ctr("images", "list", "-q").split()
    if images:
        node.containerd.ctr("images", "remove", *images)
    collect(node)


def collect(node: Node) -> None:
    """Have containerd collect its garbage, and wait for it."""
    node.containerd.ctr("leases", "create", "--id", "collect")
    node.containerd.ctr("leases", "delete", "--sync", "collect")


@pytest.fixture(scope="session")
def go_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Go client, compiled."""
    return goclient.build(tmp_path_factory.mktemp("go"))


@pytest.fixture
def plain(server: Server, tmp_path: Path) -> Published:
    """The image of `samples.plain`."""
    return server.publish("plain", lambda directory: write_image(directory / "plain", "v1", samples.plain()), tmp_path)


@pytest.fixture
def odd(server: Server, tmp_path: Path) -> Published:
    """The image of `samples.odd`."""
    return server.publish("odd", lambda directory: write_image(directory / "odd", "v1", samples.odd()), tmp_path)


@pytest.fixture
def loaded(server: Server, tmp_path: Path) -> Published:
    """The image of `samples.loaded`."""
    return server.publish("loaded", lambda directory: write_image(directory / "loaded", "v1", samples.loaded()), tmp_path)
