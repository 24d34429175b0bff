"""The daemon's side with real workers and mounts: who dies takes nobody along, and the next daemon goes on."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapshotter.daemon.keeping import Held, KeeperStore
from snapshotter.daemon.sources import LayerSource
from snapshotter.daemon.supervisor import Supervisor
from snapshotter.errors import CorruptError, UnavailableError
from snapshotter.mount import mounting
from snapshotter.mount.journal import CRASHES_MAX
from tests.mount.source import Builder
from tests.support import mounts, tools
from tests.support.processes import find, kill

WORKER = [sys.executable, str(Path(__file__).parent / "poison_entry.py")]
PATIENCE = 30 * tools.slowness()


class Node:
    """A root directory with layers, and one daemon after the other."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory = root / "workers"

    def layer(self, name: str) -> Path:
        """An image of one file, ``file``, which holds `name` many times."""
        source = self.root / f"source-{name}"
        source.mkdir()
        (source / "file").write_text(name * 1000)
        builder = Builder()
        builder.add_tree(source)
        (self.root / "l" / name).mkdir(parents=True)
        return builder.write(self.root / name)

    @contextlib.contextmanager
    def daemon(self, workers: int = 1, identity: str = "1", names: str = "") -> Iterator[Supervisor]:
        """A daemon, which mounts the layers `names`."""
        held = Held(KeeperStore(self.directory))
        supervisor = Supervisor(WORKER, self.directory, workers, held, identity)
        held.open()
        supervisor.start()
        supervisor.clear(self.root / "l")
        try:
            for name in names:
                self.mount(supervisor, name)
            supervisor.settle()
            held.settle()
            yield supervisor
        finally:
            supervisor.close()
            held.close()

    def mount(self, supervisor: Supervisor, name: str) -> None:
        source = LayerSource((), (str(self.root / name / "chunks"),))
        supervisor.mount(name, self.root / "l" / name, self.root / name / "metadata", source)

    def file(self, name: str) -> Path:
        return self.root / "l" / name / "file"

    def read(self, name: str) -> None:
        """As a container would, and past the page cache."""
        command = ["dd", f"if={self.file(name)}", "iflag=direct", "bs=1M", "status=none"]
        assert subprocess.run(command, capture_output=True, timeout=PATIENCE, check=True).stdout == name.encode() * 1000

    def workers(self) -> list[int]:
        return find(lambda words: WORKER[1] in words and any((self.directory / f"{word}.sock").exists() for word in words))

    def keepers(self) -> list[int]:
        return find(lambda words: str(self.directory) in words)

    def device(self, name: str) -> str:
        info = mounting.find(self.root / "l" / name)
        assert info is not None
        return info.device

    def close(self) -> None:
        for pid in [*self.workers(), *self.keepers()]:
            kill(pid)
        mounts.unmount_all(self.root)
        shutil.rmtree(self.root)


@pytest.fixture
def node() -> Iterator[Node]:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, before[1]))
    node = Node(Path(tempfile.mkdtemp(prefix="node-")))
    yield node
    node.close()
    resource.setrlimit(resource.RLIMIT_CORE, before)


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_next_daemon_goes_on_with_the_same_workers_and_mounts(node: Node) -> None:
    for name in "ab":
        node.layer(name)
    with node.daemon(workers=2, names="ab"):
        workers, devices = node.workers(), [node.device(name) for name in "ab"]
    assert len(workers) == 2
    node.read("a")
    with node.daemon(workers=2, names="ab") as second:
        assert node.workers() == workers
        assert [node.device(name) for name in "ab"] == devices
        assert {mount for state in second.workers() for mount in state.mounts} == {str(node.root / "l" / n) for n in "ab"}
        kill(workers[0])
        kill(workers[1])
        for name in "ab":
            node.read(name)


def test_a_new_release_or_configuration_renews_the_workers(node: Node) -> None:
    node.layer("a")
    with node.daemon(names="a"):
        workers, device = node.workers(), node.device("a")
    with node.daemon(identity="2", names="a"):
        node.read("a")
        assert not set(node.workers()) & set(workers)
        assert node.device("a") == device


@pytest.mark.parametrize("survivor", ["keeper", "workers"])
def test_one_of_all_processes_is_enough(node: Node, survivor: str) -> None:
    """Everything else is killed at once; what goes on are the same mounts."""
    node.layer("a")
    with node.daemon(names="a"):
        device = node.device("a")
    for pid in node.workers() if survivor == "keeper" else node.keepers():
        kill(pid)
    with node.daemon(names="a"):
        assert node.device("a") == device
        node.read("a")


def test_without_any_survivor_layers_are_mounted_anew(node: Node) -> None:
    node.layer("a")
    with node.daemon(names="a"):
        pass
    for pid in [*node.workers(), *node.keepers()]:
        kill(pid)
    with pytest.raises(OSError, match=r"not connected|aborted"):
        node.file("a").stat()
    with node.daemon(names="a"):
        node.read("a")


def test_what_nobody_asks_for_any_more_is_taken_off_and_its_users_keep_it(node: Node) -> None:
    for name in "ab":
        node.layer(name)
    with node.daemon(names="ab"):
        pass
    using = subprocess.Popen(["sleep", "1000"], cwd=node.root / "l" / "b")
    try:
        with node.daemon(names="a"):
            assert mounting.find(node.root / "l" / "b") is None
            node.read("a")
    finally:
        using.kill()
        using.wait()


def test_the_layer_that_kills_its_workers_takes_no_other_along(node: Node) -> None:
    names = "abcdef"
    images = {name: node.layer(name) for name in names}
    with node.daemon(names=names) as supervisor:
        (images["c"] / "chunks" / "poison").touch()
        victim = subprocess.Popen(["cat", node.file("c")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            point = str(node.root / "l" / "c")
            wait_for(lambda: any(state.mounts == (point,) and state.deaths > 3 for state in supervisor.workers()))
            for name in names.replace("c", ""):
                node.read(name)
            # Its worker comes back more and more slowly, and once the cause is gone, what waited goes on.
            (images["c"] / "chunks" / "poison").unlink()
            assert victim.wait(PATIENCE) == 0
        finally:
            (images["c"] / "chunks" / "poison").unlink(missing_ok=True)
            victim.kill()
            victim.wait()
        node.read("c")


def test_a_request_that_kills_every_worker_fails_in_the_end(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its layer is served again without it, and its caller gets an error that the log explains."""
    monkeypatch.setattr("snapshotter.daemon.supervision.PAUSE_MAX", 0.1)
    image = node.layer("c")
    with node.daemon(names="c"):
        (image / "chunks" / "poison").touch()
        # one process after another is started for it, which takes its time where the processor is emulated
        read = subprocess.run(["cat", node.file("c")], capture_output=True, timeout=4 * PATIENCE, check=False)
        assert read.returncode == 1
        assert b"Input/output error" in read.stderr
        wait_for(lambda: "file /file, bytes 0+4096: " in caplog.text)
        assert f"{CRASHES_MAX} workers crashed while they had this request" in caplog.text
        # the kernel asks for the page again after the error, and that takes a worker more each time, no second round
        assert CRASHES_MAX < caplog.text.count("mount worker 0 died") < CRASHES_MAX + 4
        (image / "chunks" / "poison").unlink()
        node.read("c")


def test_a_layer_whose_files_are_gone_fails_its_users_instead_of_letting_them_wait(node: Node) -> None:
    for name in "ab":
        node.layer(name)
    with node.daemon(names="ab"):
        (node.root / "a" / "metadata").unlink()
        (pid,) = node.workers()
        kill(pid)
        node.read("b")
        wait_for(lambda: _fails(node.file("a")))


def _fails(path: Path) -> bool:
    return subprocess.run(["stat", path], capture_output=True, timeout=PATIENCE).returncode != 0


def test_a_layer_that_cannot_be_mounted_leaves_nothing(node: Node) -> None:
    image = node.layer("a")
    with node.daemon() as supervisor:
        (image / "metadata").write_bytes(b"garbage" * 8)
        with pytest.raises(CorruptError):
            node.mount(supervisor, "a")
        assert mounting.find(node.root / "l" / "a") is None
        assert all(state.mounts == () for state in supervisor.workers())


def test_workers_that_cannot_be_started_are_said(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.layer("a")
    monkeypatch.setattr("snapshotter.daemon.supervisor.READY_TIMEOUT", 0.5)
    held = Held(KeeperStore(node.directory))
    held.open()
    supervisor = Supervisor(["/nonexistent"], node.directory, 1, held)
    supervisor.start()
    with contextlib.closing(held), contextlib.closing(supervisor), pytest.raises(UnavailableError, match="did not answer"):
        node.mount(supervisor, "a")


def test_a_worker_that_hangs_is_noticed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.layer("a")
    monkeypatch.setattr("snapshotter.daemon.supervisor.PING_EVERY", 0.1)
    monkeypatch.setattr("snapshotter.daemon.supervisor.PING_TIMEOUT", 1.0 * tools.slowness())
    with node.daemon(names="a"):
        (pid,) = node.workers()
        os.kill(pid, signal.SIGSTOP)
        node.read("a")
        assert pid not in node.workers()


def test_mounts_that_come_and_go_leave_nothing(node: Node) -> None:
    node.layer("a")
    point = node.root / "l" / "a"
    with node.daemon(names="a") as supervisor:
        supervisor.unmount(point)

        def held() -> int:
            return len(os.listdir("/proc/self/fd"))

        def once() -> None:
            node.mount(supervisor, "a")
            node.read("a")
            supervisor.unmount(point)
            wait_for(lambda: all(state.report and not state.report["mounts"] for state in supervisor.workers()))

        once()
        before = held()
        for _ in range(5):
            once()
        wait_for(lambda: held() <= before)
