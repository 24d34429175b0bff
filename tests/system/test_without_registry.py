"""Life without the registry: starts, removals and broken layers, each only as bad as it must be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from snapshotter.daemon import invariants
from snapshotter.daemon.statusclient import status
from snapshotter.format.digest import from_text
from tests.support import mounts, samples
from tests.support.images import Layer, write_image
from tests.support.processes import CommandError
from tests.system.conftest import Node, Published, Server, started

pytestmark = pytest.mark.root

HELLO = ("/bin/busybox", "cat", "/data/hello")
EVERYTHING = ("/bin/sh", "-c", "cat /data/* /more/* /bin/busybox | md5sum")


@pytest.fixture
def other(server: Server, tmp_path: Path) -> Published:
    """Another image, which shares its lowest layer with `plain`."""
    layer = Layer()
    layer.directory(b"data")
    layer.file(b"data/hello", b"hello from the other\n")
    return server.publish(
        "other", lambda made: write_image(made / "other", "v1", [samples.base().tar(), layer.tar()]), tmp_path
    )


def reboot(node: Node) -> None:
    """Everything ends, and nothing is mounted any more."""
    node.snapshotter.terminate()
    node.snapshotter.kill_helpers()
    mounts.unmount_all(node.snapshotter.root)


def test_fully_cached_images_start(node: Node, plain: Published) -> None:
    """After a reboot without a network, from what is on this machine alone."""
    reference = node.pull_lazily(plain.lazy)
    expected = node.containerd.run(reference, *EVERYTHING, snapshotter="puzzlefs").text
    node.wait_for_cache(reference)
    reboot(node)
    with node.relay.gone():
        node.start_again()
        assert node.containerd.run(reference, *EVERYTHING, snapshotter="puzzlefs").text == expected
        assert invariants.settled(node.snapshotter.root) == invariants.Report((), ())


def test_a_layer_that_cannot_be_mounted_is_reported_and_isolated(
    node: Node, server: Server, plain: Published, other: Published
) -> None:
    """Its metadata is lost: the image that needs it says so, the other runs; with the registry back, it mends itself."""
    broken, whole = node.pull_lazily(plain.lazy), node.pull_lazily(other.lazy)
    for reference in (broken, whole):
        node.containerd.run(reference, *HELLO, snapshotter="puzzlefs")
    repository, _, tag = plain.lazy.rpartition(":")
    lost = [
        str(layer["annotations"]["containerd.io/snapshot/puzzlefs.diff-id"]) for layer in _metadata(server, repository, tag)
    ]
    reboot(node)
    shutil.rmtree(node.snapshotter.root / "layers" / from_text(lost[-1]).hex())
    with node.relay.gone():
        node.start_again()
        assert node.containerd.run(whole, *HELLO, snapshotter="puzzlefs").text == "hello from the other\n"
        with pytest.raises(CommandError, match=lost[-1]):
            node.containerd.run(broken, *HELLO, snapshotter="puzzlefs")
        assert lost[-1] in node.snapshotter.log.read_text()
        assert lost[-1] in str(status(node.snapshotter.socket)), "`puzzlefs status` reports it"
        assert any(lost[-1] in line for line in invariants.settled(node.snapshotter.root).broken)
    assert node.containerd.run(broken, *HELLO, snapshotter="puzzlefs").text == "hello from a layer\n"
    assert invariants.settled(node.snapshotter.root) == invariants.Report((), ())


def _metadata(server: Server, repository: str, tag: str) -> list[dict[str, dict[str, str]]]:
    layers = server.registry.manifest(repository, tag)["layers"]
    return [layer for layer in layers if "containerd.io/snapshot/puzzlefs.metadata" in layer["annotations"]]


def test_an_image_can_be_removed_at_any_time(node: Node, server: Server, plain: Published, other: Published) -> None:
    """With no registry, with a layer that is not mounted, and while a container runs on it, which goes on."""
    first, second = node.pull_lazily(plain.lazy), node.pull_lazily(other.lazy)
    with node.containerd.detached(second, "/bin/busybox", "sleep", "100", snapshotter="puzzlefs") as (name, _):
        repository, _, tag = plain.lazy.rpartition(":")
        lost = _metadata(server, repository, tag)[-1]["annotations"]["containerd.io/snapshot/puzzlefs.diff-id"]
        node.containerd.ctr("tasks", "exec", "--exec-id", "a", name, *HELLO)
        with node.relay.gone():
            node.snapshotter.terminate()
            (node.snapshotter.root / "layers" / from_text(lost).hex() / "metadata").unlink()
            node.start_again()
            node.containerd.ctr("images", "remove", "--sync", first, second)
            assert node.containerd.ctr("tasks", "exec", "--exec-id", "b", name, *HELLO) == "hello from the other\n"
            assert not (node.snapshotter.root / "layers" / from_text(lost).hex()).exists()
    node.must_be_clear()
    assert invariants.settled(node.snapshotter.root) == invariants.Report((), ())


def test_a_pull_that_fails_half_way_leaves_nothing(server: Server, go_program: Path, plain: Published) -> None:
    """The registry has the first layers and loses one of the last: what was mounted for them goes again."""
    repository, _, tag = plain.lazy.rpartition(":")
    last = server.registry.blob_file(str(_metadata(server, repository, tag)[-1]["digest"]))
    data = last.read_bytes()
    last.unlink()
    with started(server, go_program) as node:
        try:
            with pytest.raises(CommandError):
                node.go("pull", node.reference(plain.lazy))
        finally:
            last.write_bytes(data)
        node.must_be_clear()
        assert invariants.settled(node.snapshotter.root) == invariants.Report((), ())
        node.go("pull", node.reference(plain.lazy))
        assert node.go("run", node.reference(plain.lazy), *HELLO) == "hello from a layer\n"
