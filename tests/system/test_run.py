"""The whole path on real parts: converted, pulled without downloading, run."""

from __future__ import annotations

import pytest

from tests.support import debian
from tests.system.conftest import Node, Published, Server

pytestmark = pytest.mark.root


def _compressed(server: Server, reference: str) -> int:
    return sum(int(str(layer["size"])) for layer in server.layers(reference))


def test_lazy_start(node: Node, plain: Published) -> None:
    """A container starts from an image that is not there, and reads what it needs of it."""
    reference = node.pull_lazily(plain.lazy)
    assert (
        node.containerd.run(reference, "/bin/busybox", "cat", "/data/hello", snapshotter="puzzlefs").text
        == "hello from a layer\n"
    )


def test_lazy_image_is_not_downloaded(node: Node, server: Server, plain: Published) -> None:
    """containerd's content store has the manifest and the configuration, and no layer."""
    node.pull_lazily(plain.lazy)
    stored = node.containerd.ctr("content", "ls", "-q").split()
    assert stored
    assert not {str(layer["digest"]) for layer in server.layers(plain.lazy)} & set(stored)


def test_container_writes(node: Node, plain: Published) -> None:
    """What a container changes is its own: copied up, removed, made anew."""
    reference = node.pull_lazily(plain.lazy)
    script = "cd /data && echo more >>hello && rm first && mv second third && mkdir new && cat hello && ls"
    text = node.containerd.run(reference, "/bin/sh", "-c", script, snapshotter="puzzlefs").text
    assert text.split() == ["hello", "from", "a", "layer", "more", "hello", "new", "third", "zeros"]
    assert node.containerd.run(reference, "/bin/sh", "-c", "ls /data", snapshotter="puzzlefs").text.split() == [
        "first",
        "hello",
        "second",
        "zeros",
    ]


def test_second_container_fetches_nothing(node: Node, plain: Published) -> None:
    """What one container has read, the next has from the local cache."""
    reference = node.pull_lazily(plain.lazy)
    read = ("/bin/busybox", "md5sum", "/data/first", "/data/second", "/data/zeros")
    first = node.containerd.run(reference, *read, snapshotter="puzzlefs").text
    node.relay.reset()
    assert node.containerd.run(reference, *read, snapshotter="puzzlefs").text == first
    assert node.relay.received == 0


def test_ordinary_image(node: Node, plain: Published) -> None:
    """An image that was never converted works as with any snapshotter."""
    reference = node.pull(plain.ordinary, "puzzlefs")
    assert (
        node.containerd.run(reference, "/bin/busybox", "cat", "/data/hello", snapshotter="puzzlefs").text
        == "hello from a layer\n"
    )


def test_removed_image_leaves_no_snapshot(node: Node, plain: Published) -> None:
    """After the image is removed, containerd's garbage collection removes its snapshots, and their mounts end."""
    reference = node.pull_lazily(plain.lazy)
    assert node.containerd.snapshots("puzzlefs")
    node.containerd.ctr("images", "remove", "--sync", reference)
    assert node.containerd.snapshots("puzzlefs") == []


def test_pull_twice(node: Node, plain: Published) -> None:
    """Pulling what is there already changes nothing."""
    node.pull_lazily(plain.lazy)
    before = node.containerd.snapshots("puzzlefs")
    node.pull_lazily(plain.lazy)
    assert node.containerd.snapshots("puzzlefs") == before


def test_first_start_fetches_a_fraction(node: Node, server: Server) -> None:
    """Debian with Python and NumPy: for ``import numpy``, the registry sends less than a quarter of the ordinary image."""
    image = debian.image()
    published = server.publish("numpy", lambda _: image, image.layout)
    node.relay.reset()
    reference = node.pull_lazily(published.lazy)
    command = ("python3", "-c", "import numpy; print(numpy.arange(4).sum())")
    assert node.containerd.run(reference, *command, snapshotter="puzzlefs").text == "6\n"
    size = _compressed(server, published.ordinary)
    assert node.relay.received < size / 4, f"{node.relay.received} of {size} bytes"
