"""podman runs PuzzleFS images from the layer store: without downloading them, and whatever becomes of registry and daemon.

Root's podman, and an ordinary user's with a layer store of the user's own, in namespaces as ``podman unshare`` makes them.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import mounts, processes, samples, trees
from tests.support.containerd import Containerd
from tests.support.images import write_image
from tests.support.podman import RECORDING, RELEASES, Podman
from tests.support.processes import run
from tests.support.snapshotter import Snapshotter, puzzlefs
from tests.support.userns import UserNamespace
from tests.system.conftest import Published, Server

pytestmark = pytest.mark.root

SLEEP = ("/bin/busybox", "sleep", "1000")
HELLO = ("/bin/busybox", "cat", "/data/hello")


@dataclass(frozen=True, slots=True)
class Setting:
    """Which podman, and whose: root's, or an ordinary user's."""

    release: str
    rootless: bool

    def __str__(self) -> str:
        return f"{self.release}-{'user' if self.rootless else 'root'}"


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine with podman and the layer store."""

    setting: Setting
    directory: Path
    snapshotter: Snapshotter
    podman: Podman
    server: Server

    def reference(self, name: str) -> str:
        """The full reference of an image of the session's registry."""
        return f"{self.server.relay.address}/{name}"

    def layers(self) -> list[str]:
        """The places at which the store has layers mounted; one is gone once nothing is mounted there."""
        return os.listdir(self.snapshotter.root / "store" / "l")

    def kill(self, *, workers: bool) -> None:
        """Kill the daemon, and what serves its mounts too if wanted."""
        self.snapshotter.service.process.kill()
        self.snapshotter.service.process.wait()
        root = str(self.snapshotter.root)
        if workers:
            for pid in processes.find(lambda words: "snapshotter.daemon.worker_main" in words and root in words):
                processes.kill(pid)


def _settings(releases: Sequence[str], *rootless: bool) -> pytest.MarkDecorator:
    settings = [Setting(release, whose) for whose in rootless for release in releases]
    return pytest.mark.parametrize("machine", settings, indirect=True, ids=str)


everywhere = _settings(RELEASES, False, True)
of_root = _settings(RELEASES, False)
recording = _settings(RECORDING, False, True)
recording_of_root = _settings(RECORDING, False)


@pytest.fixture
def machine(request: pytest.FixtureRequest, server: Server) -> Iterator[Machine]:
    """One for one test, with the podman of its `Setting`."""
    setting: Setting = request.param
    directory = Path(tempfile.mkdtemp(prefix="p-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        # podman is in a mount namespace of its own, and must see the mounts that come later, as under systemd
        namespace = None
        if setting.rootless:
            (directory / "s").mkdir()
            namespace = UserNamespace(directory)
            stack.callback(namespace.close)
        else:
            run("mount", "--bind", directory, directory)
            stack.callback(mounts.unmount_all, directory)
            run("mount", "--make-shared", directory)
        store = directory / "store"
        snapshotter = Snapshotter(
            directory / "s",
            plain_http=[server.relay.address],
            read_timeout=5,
            containerd=directory / "c" / "containerd.sock",
            settings=f'[layer_store]\nmountpoint = "{store}"\n',
            enter=() if namespace is None else namespace.enter(),
        )
        stack.callback(snapshotter.stop)
        podman = Podman(setting.release, directory, directory / "p", store, server.relay.address, namespace)
        stack.callback(podman.close)
        yield Machine(setting, directory, snapshotter, podman, server)


@pytest.fixture
def twice(server: Server, tmp_path: Path) -> Published:
    """An image that has the same layer twice, with another one between."""
    base, data, more = samples.plain()
    layers = [base, data, more, data]
    return server.publish("twice", lambda directory: write_image(directory / "twice", "v1", layers), tmp_path)


@everywhere
def test_runs_without_downloading(machine: Machine, plain: Published) -> None:
    """A container starts, and what the registry sent is what it read: the image's other files stay there."""
    machine.server.relay.reset()
    assert machine.podman.run(machine.reference(plain.lazy), *HELLO) == "hello from a layer\n"
    size = sum(int(str(layer["size"])) for layer in machine.server.layers(plain.lazy))
    unread = 3 * 300_000  # three files of noise
    # What lies beside what is read may come with it: a chunk or two, if the link looks quick.
    assert machine.server.relay.received < size - unread * 3 // 4


@recording_of_root
def test_status_shows_the_image(machine: Machine, plain: Published) -> None:
    """Among the images of the node, as podman's, for people and for programs."""
    reference = machine.reference(plain.lazy)
    machine.podman.run(reference, *HELLO)

    def tell() -> dict[str, Any]:
        said = puzzlefs("status", "--socket", machine.snapshotter.socket, "--json").stdout
        return json.loads(said)["images"][reference]  # type: ignore[no-any-return]

    # What was read is written to the cache a moment later, when it is quiet.
    machine.snapshotter.service.wait_until(lambda: tell()["local"] > 0, "a cached chunk in the status")
    image = tell()
    assert image["of"] == ["podman"]
    assert len(image["layers"]) == len(machine.layers())
    assert image["local"] < image["chunks"]
    assert reference in puzzlefs("status", "--socket", machine.snapshotter.socket).stdout


@recording_of_root
def test_ordinary_image_runs(machine: Machine, plain: Published) -> None:
    """The store does not stand in the way of an image that it does not serve."""
    assert machine.podman.run(machine.reference(plain.ordinary), *HELLO) == "hello from a layer\n"


@everywhere
def test_root_equals_that_of_the_ordinary_image(machine: Machine, odd: Published) -> None:
    """Whiteouts, opaque directories, links, xattrs, devices, owners, names, times: as podman itself unpacks them.

    Left out is where podman and containerd disagree (we follow containerd): directories that a layer only implies, attributes
    that only root may see, empty ones; what podman makes for each container; devices, which podman does not unpack for a user.
    """
    seen = []
    for name in (odd.ordinary, odd.lazy):
        _, pid = machine.podman.start(machine.reference(name), *SLEEP)
        seen.append(trees.look(f"/proc/{pid}/root".encode()))
    own = {b".", b"etc", b"etc/hostname", b"etc/hosts", b"etc/mtab", b"etc/resolv.conf", b"run", b"run/.containerenv"}
    own |= {b"implicit", b"implicit/deeper", b"xattrs", b"xattrs/empty-value"}
    if machine.setting.rootless:
        own |= {b"kinds/null", b"kinds/large-numbers", b"kinds/loop"}
    expected, shown = ({name: what for name, what in one.items() if name not in own} for one in seen)
    assert len(expected) > 150
    assert trees.differences(expected, shown) == []


@of_root
def test_a_layer_that_occurs_twice(machine: Machine, twice: Published) -> None:
    """overlayfs, which takes no directory twice, gets a mount for each occurrence."""
    assert machine.podman.run(machine.reference(twice.lazy), *HELLO) == "hello from a layer\n"


@recording_of_root
def test_removed_image_is_unmounted(machine: Machine, plain: Published) -> None:
    """After ``podman rmi`` no layer of the image stays mounted."""
    machine.podman.run(machine.reference(plain.lazy), "/bin/busybox", "true")
    assert machine.layers()
    machine.podman("rmi", "--force", machine.reference(plain.lazy))
    assert machine.layers() == []


@recording
def test_registry_gone(machine: Machine, plain: Published) -> None:
    """An image that was pulled runs without its registry, as far as its files were read before."""
    reference = machine.reference(plain.lazy)
    expected = machine.podman.run(reference, *HELLO)
    with machine.server.relay.gone():
        assert machine.podman.run(reference, *HELLO) == expected


@recording_of_root
def test_chunks_are_shared_with_containerd(machine: Machine, server: Server, plain: Published) -> None:
    """What containerd's images on this machine have read is not fetched again for podman's."""
    containerd = Containerd(machine.directory / "c", machine.snapshotter.socket)
    try:
        reference = machine.reference(plain.lazy)
        machine.snapshotter.pull(reference, containerd.namespace)
        read = ("/bin/busybox", "cat", "/data/first", "/data/second", "/more/file")
        containerd.run(reference, "/bin/busybox", "md5sum", *read[2:], snapshotter="puzzlefs")
        server.relay.reset()
        machine.podman.run(reference, "/bin/busybox", "md5sum", *read[2:])
        assert server.relay.received < 100_000  # manifests, metadata, indexes
    finally:
        containerd.stop()


@recording_of_root
def test_daemon_dies_under_a_container(machine: Machine, plain: Published) -> None:
    """A running container goes on while the daemon is gone; podman waits for the next one, and then works as before."""
    reference = machine.reference(plain.lazy)
    identity, _ = machine.podman.start(reference, *SLEEP)
    read = ("exec", identity, "/bin/busybox", "md5sum", "/data/first")
    digest = machine.podman(*read)
    machine.kill(workers=False)
    restart = threading.Timer(3, machine.snapshotter.start)  # longer than the kernel believes what it knows of the store
    restart.start()
    try:
        assert machine.podman(*read) == digest
    finally:
        restart.join()
    assert machine.podman(*read, "/more/file").startswith(digest)
    assert machine.podman.run(reference, *HELLO) == "hello from a layer\n"
    machine.podman("rm", "--force", "--time", "0", identity)
    machine.podman("rmi", "--force", reference)
    assert machine.layers() == []


@recording
def test_everything_dies_under_a_container(machine: Machine, twice: Published) -> None:
    """Daemon and workers killed at once: the container reads on when they are back, another one starts from the same mounts,
    those of a layer that occurs twice too, and all of them go with the image."""
    reference = machine.reference(twice.lazy)
    identity, _ = machine.podman.start(reference, *SLEEP)
    before = set(machine.layers())
    machine.kill(workers=True)
    machine.snapshotter.start()
    assert machine.podman("exec", identity, *HELLO) == machine.podman.run(reference, *HELLO) == "hello from a layer\n"
    assert set(machine.layers()) == before
    machine.podman("rm", "--force", "--time", "0", identity)
    machine.podman("rmi", "--force", reference)
    assert machine.layers() == []


@recording_of_root
def test_layer_whose_metadata_is_lost(machine: Machine, plain: Published) -> None:
    """A start without it goes on; ``puzzlefs status`` says so until podman needs the layer, which mends it."""
    reference = machine.reference(plain.lazy)
    machine.podman.run(reference, *HELLO)
    machine.kill(workers=True)
    lost = next((machine.snapshotter.root / "store" / "layers").glob("*/metadata"))
    lost.unlink()
    machine.snapshotter.start()

    def failed() -> dict[str, str]:
        told = json.loads(puzzlefs("status", "--socket", machine.snapshotter.socket, "--json").stdout)
        return dict(told["failed"])

    [(layer, why)] = failed().items()
    assert layer == f"sha256:{lost.parent.name}"
    assert "is gone" in why
    assert machine.podman.run(reference, *HELLO) == "hello from a layer\n"
    assert failed() == {}


@recording_of_root
def test_store_that_is_configured_no_more_is_unmounted(machine: Machine) -> None:
    """Its directory is then an ordinary empty one, and no dead mount."""
    machine.snapshotter.service.stop()
    text = machine.snapshotter.config.read_text()
    machine.snapshotter.config.write_text(text[: text.index("[layer_store]")])
    machine.snapshotter.start()
    assert mounts.mount_points(machine.directory / "store") == []
    assert list((machine.directory / "store").iterdir()) == []


@recording_of_root
def test_paths_that_mean_nothing(machine: Machine, plain: Published) -> None:
    """Whatever is looked up in the store: it does not exist, and nothing is kept of it."""
    store = machine.directory / "store"
    machine.podman.run(machine.reference(plain.lazy), "/bin/busybox", "true")
    [known] = os.listdir(store)
    unknown = base64.b64encode(f"{machine.server.relay.address}/nobody:1".encode()).decode()
    key = "sha256:" + "0" * 64
    names = ["x", "..x", "a" * 255, "%2e%2e", "MTI3LjAu=", unknown, f"{known}/{key}", f"{known}/sha256:zz", f"{known}/..x"]
    names += [base64.b64encode(text).decode() for text in (b"../../etc", b"UPPER/x", b"\xff\xfe", b"host/name:tag@x")]
    for name in names:
        assert not os.path.lexists(store / name), name
    for number in range(2000):
        assert not os.path.lexists(store / base64.b64encode(b"n/%d:" % number).decode())
    with pytest.raises(OSError, match="Read-only file system"):
        (store / "new").mkdir()
    assert os.listdir(store) == [known]


@recording_of_root
def test_others_than_root_cannot_look(machine: Machine) -> None:
    """Neither at what is there nor for what may be: the daemon would ask registries for them, as root."""
    script = "import os, sys; os.open(sys.argv[1], os.O_RDONLY, dir_fd=int(sys.argv[2]))"
    directory = os.open(machine.directory, os.O_PATH)
    try:
        words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", script]
        os.chmod(machine.directory, 0o755)
        for name, error in ((".", ""), ("store", "Permission denied")):  # the first shows that it is the store's own doing
            done = subprocess.run([*words, name, str(directory)], pass_fds=[directory], capture_output=True, text=True)
            assert error in done.stderr
            assert (done.returncode == 0) == (not error), done.stderr
    finally:
        os.close(directory)
