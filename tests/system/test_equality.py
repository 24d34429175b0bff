"""A container's root on this snapshotter equals, name by name, what containerd's own overlayfs shows of the source image."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import samples, trees
from tests.support.images import Layer, write_image
from tests.support.trees import Seen
from tests.system.conftest import Node, Published, Server

pytestmark = pytest.mark.root

# containerd sets no times on the root and on directories that a layer implies: they have the time of the extraction
TIMELESS = (b".", b"implicit", b"implicit/deeper")

SLEEP = ("/bin/busybox", "sleep", "1000")


def _committed(node: Node, chain_id: str, snapshotter: str) -> dict[bytes, Seen]:
    with node.containerd.snapshot(chain_id, node.directory / f"view-{snapshotter}", snapshotter) as root:
        return trees.look(os.fsencode(root))


def _in_container(node: Node, reference: str, snapshotter: str) -> dict[bytes, Seen]:
    with node.containerd.detached(reference, *SLEEP, snapshotter=snapshotter) as (_, pid):
        return trees.look(f"/proc/{pid}/root".encode())


def test_lazy_snapshot_equals_overlayfs(node: Node, server: Server, odd: Published) -> None:
    """lstat with nanoseconds and link counts, xattrs, content, hard links: of the image's top snapshot."""
    node.pull(odd.ordinary, "overlayfs")
    node.pull_lazily(odd.lazy)
    expected = _committed(node, odd.source.chain_id, "overlayfs")
    assert len(expected) > 150
    assert trees.differences(expected, _committed(node, server.chain_id(odd.lazy), "puzzlefs"), TIMELESS) == []


def test_lazy_container_equals_overlayfs(node: Node, odd: Published) -> None:
    """The same, of the root that a running container has, seen through that container's process."""
    ordinary, lazy = node.pull(odd.ordinary, "overlayfs"), node.pull_lazily(odd.lazy)
    assert trees.differences(_in_container(node, ordinary, "overlayfs"), _in_container(node, lazy, "puzzlefs"), TIMELESS) == []


def test_a_container_sees_the_same(node: Node, odd: Published) -> None:
    """The same, as a program within the container sees it."""
    script = (
        "cd / && find . -xdev ! -type d -exec stat -c '%n|%F|%a|%u|%g|%s|%h|%t|%T|%Y' {} + | sort; "
        "find . -xdev -type f -exec md5sum {} + 2>&1 | sort; find . -xdev -type l -exec readlink {} + | sort"
    )
    ordinary, lazy = node.pull(odd.ordinary, "overlayfs"), node.pull_lazily(odd.lazy)
    seen = {
        name: node.containerd.run(reference, "/bin/sh", "-c", script, snapshotter=name).text
        for name, reference in (("overlayfs", ordinary), ("puzzlefs", lazy))
    }
    assert seen["overlayfs"].count("\n") > 130
    assert seen["puzzlefs"] == seen["overlayfs"]


def test_ordinary_image_equals_overlayfs(node: Node, odd: Published) -> None:
    """Ordinary layers on this snapshotter are what they are on overlayfs."""
    node.pull(odd.ordinary, "overlayfs")
    node.pull(odd.ordinary, "puzzlefs")
    expected = _committed(node, odd.source.chain_id, "overlayfs")
    assert trees.differences(expected, _committed(node, odd.source.chain_id, "puzzlefs"), TIMELESS) == []


def test_hard_link_to_an_earlier_layer(node: Node, server: Server, tmp_path: Path) -> None:
    """A layer may link to a file of a layer below: both names are then one file, with the attributes of the link's own entry.

    containerd's own apply refuses such a layer, so there is nothing to compare with.
    """
    below, above = samples.base(), Layer()
    below.directory(b"a")
    below.file(b"a/target", samples.noise(100_000, 7), 0o640, owner=(3, 4), mtime=samples.EPOCH + 5, xattrs={"user.x": b"1"})
    above.directory(b"b")
    above.hardlink(b"b/link", b"a/target", owner=(5, 6), mtime=samples.EPOCH + 9)
    image = write_image(tmp_path / "image", "v1", [below.tar(), above.tar()])
    server.push(image, "linked:ordinary")
    server.convert("linked:ordinary", "linked:puzzlefs")
    node.pull_lazily("linked:puzzlefs")
    seen = _committed(node, server.chain_id("linked:puzzlefs"), "puzzlefs")
    for name, other in ((b"a/target", b"b/link"), (b"b/link", b"a/target")):
        assert (seen[name].mode, seen[name].uid, seen[name].gid, seen[name].mtime_ns) == (0o100644, 5, 6, samples.EPOCH + 9)
        assert seen[name].content == trees.sha256(samples.noise(100_000, 7))
        assert (seen[name].xattrs, seen[name].links, seen[name].twins) == ((("user.x", b"1"),), 2, (other,))
