"""An ordinary user's podman, with a layer store of the user's own."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import processes, trees
from tests.support.podman import RECORDING, RELEASES, Podman
from tests.support.snapshotter import Snapshotter
from tests.support.userns import UserNamespace
from tests.system.conftest import Published, Server

pytestmark = pytest.mark.root

SLEEP = ("/bin/busybox", "sleep", "1000")


@dataclass(frozen=True, slots=True)
class User:
    """A user's daemon and podman."""

    directory: Path
    snapshotter: Snapshotter
    podman: Podman
    server: Server

    def reference(self, name: str) -> str:
        """The full reference of an image of the session's registry."""
        return f"{self.server.relay.address}/{name}"


recording = pytest.mark.parametrize("user", RECORDING, indirect=True)


@pytest.fixture(params=RELEASES)
def user(request: pytest.FixtureRequest, server: Server) -> Iterator[User]:
    """One for one test, with each podman in turn."""
    directory = Path(tempfile.mkdtemp(prefix="u-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        (directory / "s").mkdir()
        namespace = UserNamespace(directory)
        stack.callback(namespace.close)
        store = directory / "store"
        snapshotter = Snapshotter(
            directory / "s",
            plain_http=[server.relay.address],
            read_timeout=5,
            settings=f'[layer_store]\nmountpoint = "{store}"\n',
            enter=namespace.enter(),
        )
        stack.callback(snapshotter.stop)
        podman = Podman(request.param, directory, directory / "p", store, server.relay.address, namespace)
        stack.callback(podman.close)
        yield User(directory, snapshotter, podman, server)


def test_runs_without_downloading(user: User, plain: Published) -> None:
    """A container starts, and what the registry sent is what it read: the image's other files stay there."""
    user.server.relay.reset()
    assert user.podman.run(user.reference(plain.lazy), "/bin/busybox", "cat", "/data/hello") == "hello from a layer\n"
    size = sum(int(str(layer["size"])) for layer in user.server.layers(plain.lazy))
    unread = 3 * 300_000  # three files of noise
    assert user.server.relay.received < size - unread * 9 // 10


def test_root_equals_that_of_the_ordinary_image(user: User, odd: Published) -> None:
    """Whiteouts, opaque directories, links, xattrs, names, times, owners as the user's namespace has them.

    Left out is what is left out for root's podman (``test_podman``), and devices, which podman does not unpack for a user.
    """
    seen = []
    for name in (odd.ordinary, odd.lazy):
        _, pid = user.podman.start(user.reference(name), *SLEEP)
        seen.append(trees.look(f"/proc/{pid}/root".encode()))
    own = {b".", b"etc", b"etc/hostname", b"etc/hosts", b"etc/mtab", b"etc/resolv.conf", b"run", b"run/.containerenv"}
    own |= {b"implicit", b"implicit/deeper", b"xattrs", b"xattrs/empty-value"}
    own |= {b"kinds/null", b"kinds/large-numbers", b"kinds/loop"}
    expected, shown = ({name: what for name, what in one.items() if name not in own} for one in seen)
    assert len(expected) > 150
    assert trees.differences(expected, shown) == []


@recording
def test_registry_gone(user: User, plain: Published) -> None:
    """An image that was pulled runs without its registry, as far as its files were read before."""
    reference = user.reference(plain.lazy)
    read = ("/bin/busybox", "cat", "/data/hello")
    expected = user.podman.run(reference, *read)
    with user.server.relay.gone():
        assert user.podman.run(reference, *read) == expected


@recording
def test_everything_dies_under_a_container(user: User, plain: Published) -> None:
    """Daemon and workers killed at once: the container reads on when they are back, and podman works as before."""
    reference = user.reference(plain.lazy)
    identity, _ = user.podman.start(reference, *SLEEP)
    user.snapshotter.service.process.kill()
    user.snapshotter.service.process.wait()
    root = str(user.snapshotter.root)
    for pid in processes.find(lambda words: "snapshotter.daemon.worker_main" in words and root in words):
        processes.kill(pid)
    user.snapshotter.start()
    assert user.podman("exec", identity, "/bin/busybox", "cat", "/data/hello") == "hello from a layer\n"
    user.podman("rm", "--force", "--time", "0", identity)
    user.podman("rmi", "--force", reference)
    assert os.listdir(user.snapshotter.root / "store" / "l") == [], "no layer stays mounted"
