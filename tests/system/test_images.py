"""What clients do with images besides pulling them lazily: nothing is lost, and all of it ends in mounted layers."""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import mounts, trees
from tests.support.dockerregistry import DockerRegistry
from tests.support.processes import CommandError
from tests.support.relay import Relay
from tests.support.releases import FORKY, MACHINE, TRIXIE, Release
from tests.system.conftest import Node, Published, Server, clear, started
from tests.system.test_equality import TIMELESS

pytestmark = pytest.mark.root

EVERYTHING = ("/bin/sh", "-c", "cat /data/* /more/* /bin/busybox | md5sum")
"""Reads every file of the image `samples.plain`."""


@pytest.fixture(scope="module", params=[TRIXIE, FORKY], ids=lambda release: release.name)
def machine(request: pytest.FixtureRequest, server: Server, go_program: Path) -> Iterator[Node]:
    """One node for the tests of a release that can have a differ."""
    with started(server, go_program, release=request.param) as node:
        yield node


@pytest.fixture
def place(machine: Node) -> Iterator[Node]:
    """A namespace of the test's own on it; when all its images are removed, no snapshot, mount or directory may stay."""
    machine.containerd.namespace = f"pz{uuid.uuid4().hex[:10]}"
    yield machine
    machine.must_be_clear()


@pytest.fixture
def expected(place: Node, plain: Published) -> str:
    """What `EVERYTHING` prints in a container of the ordinary image on overlayfs."""
    private, place.containerd.namespace = place.containerd.namespace, f"{place.containerd.namespace}x"
    reference = place.pull(plain.ordinary, "overlayfs")
    said: str = place.go("run", reference, *EVERYTHING, snapshotter="overlayfs")
    clear(place)
    place.containerd.namespace = private
    return said


@contextlib.contextmanager
def elsewhere(node: Node) -> Iterator[None]:
    """Another namespace meanwhile, which has nothing; it is emptied at the end."""
    private, node.containerd.namespace = node.containerd.namespace, f"{node.containerd.namespace}y"
    try:
        yield
    finally:
        clear(node)
        node.containerd.namespace = private


def mounted(node: Node) -> int:
    """How many layers are mounted."""
    return len(mounts.mount_points(node.snapshotter.root / "l"))


def test_a_pull_without_unpacking_then_a_run(place: Node, plain: Published, expected: str) -> None:
    """Everything was downloaded, so that no registry is needed any more."""
    reference = place.reference(plain.lazy)
    place.go("pull-no-unpack", reference)
    assert place.containerd.snapshots("puzzlefs") == []
    with place.relay.gone():
        place.go("unpack", reference)
        assert mounted(place) == 3
        assert place.go("run", reference, *EVERYTHING) == expected


def test_a_pull_for_all_platforms(place: Node, plain: Published, expected: str) -> None:
    """Every platform's content is fetched, and this one's unpacked from it."""
    reference = place.reference(plain.lazy)
    place.go("pull-all", reference)
    with place.relay.gone():
        assert mounted(place) == 3
        assert place.go("run", reference, *EVERYTHING) == expected


def test_ctr_pulls_without_the_transfer_service(place: Node, plain: Published, expected: str) -> None:
    """``ctr images pull``, of 2.x with --local, gives the snapshotter no labels."""
    reference = place.reference(plain.lazy)
    local = ["--local"] if place.containerd.release.version >= (2, 0) else []
    place.containerd.ctr("images", "pull", *local, "--plain-http", "--snapshotter", "puzzlefs", reference)
    with place.relay.gone():
        assert mounted(place) == 3
        assert place.containerd.run(reference, *EVERYTHING, snapshotter="puzzlefs").text == expected


def test_saved_and_loaded(place: Node, plain: Published, expected: str) -> None:
    """A lazily pulled image is saved whole, and runs where it is loaded, without a registry."""
    reference, file = place.reference(plain.lazy), place.directory / "saved.tar"
    place.go("pull", reference)
    place.go("save", reference, file)
    place.go("remove", reference)
    # also where it was looked for in vain a moment ago
    for where in (contextlib.nullcontext(), elsewhere(place)):
        with place.relay.gone(), where:
            assert place.go("load", file) == [reference]
            assert mounted(place) == 3
            assert place.go("run", reference, *EVERYTHING) == expected
            place.go("remove", reference)
    file.unlink()


@pytest.mark.parametrize("local", [False, True], ids=["transfer", "local"])
def test_imported_by_ctr(place: Node, plain: Published, expected: str, local: bool) -> None:
    """``ctr images export`` and ``import``, by the client itself and by the transfer service of 2.x."""
    if not local and place.containerd.release.version < (2, 0):
        pytest.skip("the transfer service of containerd 1.7 imports no image")
    reference, file = place.reference(plain.lazy), place.directory / "exported.tar"
    place.go("pull-no-unpack", reference)
    # what the transfer service of 2.x exports was seen to end too soon, on a machine with other work
    whole = ["--local"] if place.containerd.release.version >= (2, 0) else []
    place.containerd.ctr("images", "export", *whole, file, reference)
    place.go("remove", reference)
    words = ["--local"] if local and place.containerd.release.version >= (2, 0) else []
    with place.relay.gone(), elsewhere(place):
        place.containerd.ctr("images", "import", *words, "--snapshotter", "puzzlefs", file)
        assert mounted(place) == 3
        assert place.containerd.run(reference, *EVERYTHING, snapshotter="puzzlefs").text == expected
    file.unlink()


@pytest.fixture
def second(tmp_path: Path) -> Iterator[Relay]:
    """Another registry."""
    with tempfile.TemporaryDirectory(prefix="r-") as directory:
        registry = DockerRegistry(Path(directory))
        relay = Relay(registry.endpoint)
        yield relay
        relay.close()
        registry.stop()


@pytest.mark.parametrize("target", ["same registry", "other registry"])
def test_committed_and_pushed(
    place: Node, plain: Published, server: Server, go_program: Path, second: Relay, target: str
) -> None:
    """A container's changes become a layer on ours; the image that arrives elsewhere runs there, every file readable."""
    reference = place.reference(plain.lazy)
    place.go("pull", reference)
    place.go(
        "create", reference, "worker", "/bin/sh", "-c", "echo changed >/data/hello; rm /data/first; mkdir /new; echo n >/new/n"
    )
    host = second.address if target == "other registry" else place.relay.address
    committed = f"{host}/committed-{place.containerd.release.name}:1"
    place.go("commit", "worker", committed)
    everything = ("/bin/sh", "-c", "cat /data/* /more/* /bin/busybox /new/n | md5sum; cat /data/hello; ls /data")
    expected = place.go("run", committed, *everything)
    assert expected.split("\n")[1:] == ["changed", "hello", "second", "zeros", ""]
    place.go("push", committed)
    clear(place)
    with contextlib.ExitStack() as stack:
        if target == "other registry":
            stack.enter_context(place.relay.gone())
        there = stack.enter_context(started(server, go_program, release=place.containerd.release, registries=[second.address]))
        there.go("pull", committed)
        stored = set(there.containerd.ctr("content", "list", "-q").split())
        assert len(stored) <= 3, "the manifest, the configuration and the layer that the commit has added"
        assert mounted(there) == 3
        assert there.go("run", committed, *everything) == expected


def test_tagged_and_pushed_to_another_registry(
    place: Node, plain: Published, server: Server, go_program: Path, second: Relay, expected: str
) -> None:
    """A copy by tag and push needs nothing of the registry that it came from."""
    reference, copy = place.reference(plain.lazy), f"{second.address}/copied:1"
    place.go("pull", reference)
    place.go("tag", reference, copy)
    # what a lazy pull left out has to come from where the image is
    place.go("save", reference, place.directory / "whole.tar")
    (place.directory / "whole.tar").unlink()
    place.go("push", copy)
    clear(place)
    with (
        place.relay.gone(),
        started(server, go_program, release=place.containerd.release, registries=[second.address]) as there,
    ):
        there.go("pull", copy)
        assert there.go("run", copy, *EVERYTHING) == expected


def test_pruned(place: Node, plain: Published, expected: str) -> None:
    """What is in use stays whole, what is not goes; a tag keeps an image that was removed under its first name."""
    reference = place.reference(plain.lazy)
    place.go("pull", reference)
    place.go("tag", reference, "other.example/name:1")
    place.go("remove", reference)
    assert place.go("run", "other.example/name:1", *EVERYTHING) == expected
    with place.containerd.detached("other.example/name:1", "/bin/busybox", "sleep", "100", snapshotter="puzzlefs") as (name, _):
        assert place.go("prune") == []
        tasks = ("tasks", "exec", "--exec-id", "e", name, *EVERYTHING)
        assert place.containerd.ctr(*tasks) == expected
    assert place.go("prune") == ["other.example/name:1"]
    assert place.left() == []


@pytest.mark.parametrize("release", [TRIXIE, FORKY], ids=lambda release: release.name)
def test_onto_overlayfs(server: Server, go_program: Path, odd: Published, release: Release) -> None:
    """With containerd's own snapshotter a converted image is unpacked: the same tree as that of the image it was made from."""
    with started(server, go_program, release=release) as node:
        ordinary, lazy = node.reference(odd.ordinary), node.reference(odd.lazy)
        node.pull(odd.ordinary, "overlayfs")
        with node.containerd.snapshot(odd.source.chain_id, node.directory / "v", "overlayfs") as root:
            wanted = trees.look(os.fsencode(root))
        clear(node)
        node.go("pull-no-unpack", lazy)
        node.go("unpack", lazy, snapshotter="overlayfs")
        with node.containerd.snapshot(server.chain_id(odd.lazy), node.directory / "v", "overlayfs") as root:
            assert trees.differences(wanted, trees.look(os.fsencode(root)), TIMELESS) == []
        assert node.left() == []
        assert ordinary != lazy


def test_1_6_says_what_to_do(server: Server, go_program: Path, plain: Published) -> None:
    """A client that sends no labels cannot unpack there, and its message names what can."""
    with started(server, go_program, release=MACHINE) as node:
        reference = node.reference(plain.lazy)
        for attempt in (
            lambda: node.containerd.ctr("images", "pull", "--plain-http", "--snapshotter", "puzzlefs", reference),
            lambda: node.go("pull-all", reference),
        ):
            with pytest.raises(CommandError, match="puzzlefs pull"):
                attempt()
        node.containerd.ctr("images", "remove", "--sync", reference, check=False)
        assert node.containerd.snapshots("puzzlefs") == []
