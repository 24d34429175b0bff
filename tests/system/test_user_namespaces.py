"""Containers in user namespaces: their image's files are theirs, and what they do not read is not fetched."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.support.releases import FORKY
from tests.system.conftest import Node, Published, Server, reachable, started

pytestmark = pytest.mark.root

BASE = 100_000
MAPPED = ("--remap-labels", "--uidmap", f"0:{BASE}:65536", "--gidmap", f"0:{BASE}:65536")


def _capable(shipped: str) -> str:
    line = '# capabilities = ["remap-ids"]'
    assert line in shipped
    return shipped.replace(line, line.removeprefix("# "))


@pytest.fixture
def capable(server: Server) -> Iterator[Node]:
    """A node as the comments in the shipped configurations describe it."""
    with started(server, release=FORKY, change=_capable) as node:
        text = node.snapshotter.config.read_text()
        node.snapshotter.config.write_text(text.replace("[containerd]", "[containerd]\nremap_ids = true"))
        node.snapshotter.terminate()
        node.start_again()
        with reachable(node.containerd.directory / "state"):
            yield node


SCRIPT = (
    "id -u; stat -c %u:%g / /data/hello; cat /data/hello; read -r a b c </proc/self/uid_map; echo $a $b $c; echo new >/data/new"
)


def run(node: Node, reference: str, *command: str) -> list[str]:
    """What a container in a user namespace prints."""
    return node.containerd.run(reference, *command, snapshotter="puzzlefs", options=MAPPED).text.splitlines()


@pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "ordinary"])
def test_files_are_the_containers(capable: Node, plain: Published, lazy: bool) -> None:
    reference = capable.pull_lazily(plain.lazy) if lazy else capable.pull(plain.ordinary, "puzzlefs")
    assert run(capable, reference, "/bin/sh", "-c", SCRIPT) == ["0", "0:0", "0:0", "hello from a layer", f"0 {BASE} 65536"]
    assert run(capable, reference, "/bin/busybox", "ls", "/data") == ["first", "hello", "second", "zeros"]
    capable.must_be_clear()


def test_it_starts_lazily(capable: Node, plain: Published, server: Server) -> None:
    """Without this, containerd copies the image to change its owners, and so fetches all of it."""
    reference = capable.pull_lazily(plain.lazy)
    capable.relay.reset()
    assert run(capable, reference, "/bin/busybox", "cat", "/data/hello") == ["hello from a layer"]
    unread = 3 * 300_000  # data/first, data/second, more/file
    assert capable.relay.received < sum(int(str(layer["size"])) for layer in server.layers(plain.lazy)) - unread * 3 // 4


def test_what_it_writes_has_its_owners_outside(capable: Node, plain: Published) -> None:
    reference = capable.pull_lazily(plain.lazy)
    script = "echo new >/data/new; chmod 600 /data/hello; sleep 1000"
    with capable.containerd.detached(reference, "/bin/sh", "-c", script, snapshotter="puzzlefs", options=MAPPED):
        uppers = capable.snapshotter.root / "s"
        deadline = time.monotonic() + 30
        while len(list(uppers.glob("*/fs/data/*"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert {(path.stat().st_uid, path.stat().st_gid) for path in uppers.glob("*/fs/data/*")} == {(BASE, BASE)}
    capable.must_be_clear()


def test_it_outlives_the_daemon(capable: Node, plain: Published) -> None:
    """And another container of the same image starts beside it afterwards."""
    reference = capable.pull_lazily(plain.lazy)
    with capable.containerd.detached(reference, "/bin/sh", "-c", "sleep 1000", snapshotter="puzzlefs", options=MAPPED) as (
        name,
        _,
    ):
        capable.snapshotter.service.process.kill()
        capable.snapshotter.service.process.wait()
        capable.start_again()
        assert run(capable, reference, "/bin/busybox", "wc", "-c", "/data/second") == ["300000 /data/second"]
        assert "more" in capable.containerd.ctr("tasks", "exec", "--exec-id", "e", name, "/bin/busybox", "ls", "/")
    capable.must_be_clear()
    assert list((capable.snapshotter.root / "m").iterdir()) == []
