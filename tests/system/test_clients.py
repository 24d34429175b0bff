"""What containerd's clients do with a snapshotter, with containerd 1.6, 1.7 and 2.x, each configured as ``deploy/`` says."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import tools
from tests.support.processes import CommandError
from tests.support.releases import RELEASES
from tests.system.conftest import Node, Published, Server, clear, reachable, started

pytestmark = pytest.mark.root

HELLO = ("/bin/busybox", "cat", "/data/hello")
EVERYTHING = ("/bin/sh", "-c", "cat /data/* /more/* /bin/busybox | md5sum")
"""Reads every file of the image `samples.plain`."""


@pytest.fixture(scope="module", params=RELEASES, ids=lambda release: release.name)
def machine(request: pytest.FixtureRequest, server: Server, go_program: Path) -> Iterator[Node]:
    """One node for the tests of a release."""
    with started(server, go_program, release=request.param) as node:
        yield node


@pytest.fixture
def place(machine: Node) -> Iterator[Node]:
    """A namespace of the test's own on it; when all its images are removed, no snapshot, mount or directory may stay."""
    machine.containerd.namespace = f"pz{uuid.uuid4().hex[:10]}"
    yield machine
    machine.must_be_clear()


def needs(node: Node, version: tuple[int, int]) -> None:
    """Leave the test to the releases that can do it."""
    if node.containerd.release.version < version:
        pytest.skip(f"containerd {node.containerd.release.version} cannot do this: from {version} on")


def stored_layers(node: Node, server: Server, name: str) -> set[str]:
    """The layers of an image that containerd has downloaded."""
    stored = set(node.containerd.ctr("content", "list", "-q").split())
    return {str(layer["digest"]) for layer in server.layers(name)} & stored


def test_classic_pull(place: Node, server: Server, plain: Published) -> None:
    """nerdctl's pull: everything is mounted, nothing downloaded, and it runs."""
    reference = place.reference(plain.lazy)
    place.go("pull", reference)
    assert stored_layers(place, server, plain.lazy) == set()
    assert place.go("run", reference, *HELLO) == "hello from a layer\n"


def test_classic_pull_of_an_ordinary_image(place: Node, plain: Published) -> None:
    """An image that was never converted works as with any snapshotter."""
    reference = place.reference(plain.ordinary)
    place.go("pull", reference)
    assert place.go("run", reference, *HELLO) == "hello from a layer\n"


def test_the_same_on_overlayfs(place: Node, plain: Published) -> None:
    """The other snapshotters of this containerd go on working: an ordinary image, beside the same image here."""
    reference = place.reference(plain.ordinary)
    place.go("pull", reference, snapshotter="overlayfs")
    assert place.go("run", reference, *HELLO, snapshotter="overlayfs") == "hello from a layer\n"


def test_ctr_pulls(place: Node, server: Server, plain: Published) -> None:
    """``ctr images pull``: with the transfer service of 2.x the pull is lazy."""
    needs(place, (2, 0))
    reference = place.reference(plain.lazy)
    place.containerd.ctr("images", "pull", "--plain-http", "--snapshotter", "puzzlefs", reference)
    assert stored_layers(place, server, plain.lazy) == set()
    assert place.containerd.run(reference, *HELLO, snapshotter="puzzlefs").text == "hello from a layer\n"


@pytest.mark.parametrize("snapshotter", ["puzzlefs", "overlayfs"])
def test_ctr_pulls_ordinary_images(place: Node, plain: Published, snapshotter: str) -> None:
    """``ctr images pull`` of an image that was never converted, onto both snapshotters that are configured."""
    reference = place.pull(plain.ordinary, snapshotter)
    assert place.containerd.run(reference, *HELLO, snapshotter=snapshotter).text == "hello from a layer\n"


def test_read_only_root(place: Node, plain: Published) -> None:
    """``ctr run --read-only``: a view of the image."""
    reference = place.pull_lazily(plain.lazy)
    words = ("run", "--rm", "--read-only", "--snapshotter", "puzzlefs", "--runc-binary", tools.find("runc"))
    script = "cat /data/hello; touch /data/new || echo refused"
    text = place.containerd.ctr(*words, reference, f"c{uuid.uuid4().hex[:8]}", "/bin/sh", "-c", script)
    assert text.replace("\r", "").split("\n")[0] == "hello from a layer"
    assert "refused" in text


def test_snapshot_commands(place: Node, server: Server, plain: Published) -> None:
    """``ctr snapshots``: every subcommand on a stack of lazy and ordinary snapshots."""
    place.pull_lazily(plain.lazy)
    chain = server.chain_id(plain.lazy)

    def snapshots(*arguments: str) -> str:
        return place.containerd.ctr("snapshots", "--snapshotter", "puzzlefs", *arguments)

    (prepared,) = json.loads(snapshots("prepare", "--mounts", "mine", chain))
    assert prepared["Type"] == "overlay"
    assert json.loads(snapshots("info", "mine"))["Parent"] == chain
    snapshots("label", "mine", "containerd.io/gc.root=yes", "color=blue")
    assert json.loads(snapshots("info", "mine"))["Labels"]["color"] == "blue"
    upper = next(o.removeprefix("upperdir=") for o in prepared["Options"] if o.startswith("upperdir="))
    (Path(upper) / "file").write_bytes(b"x" * 100_000)
    assert "mine" in snapshots("usage", "mine")
    assert "upperdir" in snapshots("mounts", str(place.directory / "target"), "mine")
    snapshots("commit", "done", "mine")
    snapshots("label", "done", "containerd.io/gc.root=yes")
    for _ in range(10):
        snapshots("view", "look", "done")
        with contextlib.suppress(CommandError):  # until it is labelled, containerd may collect it
            snapshots("label", "look", "containerd.io/gc.root=yes")
            break
    rows = {line.split()[0]: line.split()[1:] for line in snapshots("list").splitlines()[1:]}
    assert rows["done"] == [chain, "Committed"]
    assert rows["look"] == ["done", "View"]
    assert "done" in snapshots("tree")
    diffed = place.containerd.release.version >= (1, 6) and snapshots("diff", chain, "done")
    assert diffed
    assert "not" in place.containerd.ctr_error("snapshots", "--snapshotter", "puzzlefs", "remove", "done")
    snapshots("remove", "look")
    snapshots("remove", "done")


def test_two_namespaces(place: Node, server: Server, plain: Published) -> None:
    """One image in two namespaces shares its mounts; removing it from one leaves it in the other."""
    first = place.containerd.namespace
    reference = place.pull_lazily(plain.lazy)
    place.containerd.namespace = f"{first}b"
    place.relay.reset()
    place.go("pull", reference)
    assert place.go("run", reference, *HELLO) == "hello from a layer\n"
    place.containerd.namespace = first
    place.containerd.ctr("images", "remove", "--sync", reference)
    assert place.containerd.snapshots("puzzlefs") == []
    place.containerd.namespace = f"{first}b"
    assert place.go("run", reference, *EVERYTHING)
    clear(place)
    place.containerd.namespace = first


def test_remapped_users(place: Node, plain: Published) -> None:
    """Labels for id mappings: root in the container is another user outside, and sees the files as its own."""
    reference = place.reference(plain.lazy)
    place.go("pull", reference)
    script = "cat /data/hello; stat -c %u /data/hello; cat /proc/self/uid_map; touch /data/new && echo written"
    with reachable(place.containerd.directory):
        lines = place.go("run-remapped", reference, "/bin/sh", "-c", script).split("\n")
    assert lines[:2] == ["hello from a layer", "0"]
    assert lines[2].split() == ["0", "100000", "65536"]
    assert lines[3] == "written"
    for name in [row[0] for row in place.containerd.snapshots("puzzlefs")][::-1]:
        place.containerd.ctr("snapshots", "--snapshotter", "puzzlefs", "remove", name, check=False)


def test_fifty_at_once(place: Node, plain: Published) -> None:
    """Fifty containers of one image that start at the same time."""
    needs(place, (1, 7))  # once with an old and once with a new one is enough of this
    reference = place.reference(plain.lazy)
    place.go("pull", reference)
    assert place.go("run-many", reference, "50", *HELLO) == {"hello from a layer\n": 50}
