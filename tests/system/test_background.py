"""What is fetched when nobody waits: the rest of images that are on the node, and of no other."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from snapshotter.daemon.statusclient import status
from tests.support import samples
from tests.support.images import Layer, write_image
from tests.system.conftest import Node, Server, started

pytestmark = pytest.mark.root

PATIENCE = 60.0


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.mark.parametrize("in_use", [False, True], ids=["by nobody any more", "in use"])
def test_an_image_that_is_removed_is_fetched_no_further(server: Server, tmp_path: Path, in_use: bool) -> None:
    """Nor if somebody still has a file of it open, so that its mount goes on."""
    layer = Layer()
    layer.directory(b"data")
    for number in range(12):
        layer.file(b"data/file-%d" % number, samples.noise(1_000_000, 50 + number))
    published = server.publish(
        "rest", lambda made: write_image(made / "rest", "v1", [samples.base().tar(), layer.tar()]), tmp_path
    )
    with started(server) as node:
        config = node.snapshotter.config
        config.write_text(config.read_text().replace("enabled = false", 'quiet = 0.5\nrate = "500KB"'))
        node.snapshotter.terminate()
        node.start_again()
        reference = node.pull_lazily(published.lazy)

        def fetched() -> int:
            return sum(told["fetched"] for told in rest(node).values())

        until(lambda: fetched() > 0, "nothing is fetched unasked")
        assert fetched() < 12_000_000
        with contextlib.ExitStack() as stack:
            if in_use:
                (path,) = (node.snapshotter.root / "l").glob("*/data/file-11")
                file = stack.enter_context(path.open("rb"))
            node.containerd.ctr("images", "remove", "--sync", reference)
            until(lambda: rest(node) == {}, "the rest of an image that is gone is still wanted")
            node.relay.reset()
            time.sleep(5)  # two more requests would have come
            assert node.relay.received == 0
            if in_use:
                assert file.read() == samples.noise(1_000_000, 61)


def rest(node: Node) -> dict[str, dict[str, int]]:
    """The layers whose rest is still to come, as the daemon tells of them."""
    told: dict[str, dict[str, int]] = status(node.snapshotter.socket)["background"]
    return told
