"""``kill -9`` of everything that serves a container, at random, while its files are read and every byte is checked.

``make chaos ROUNDS=100`` does it at length; CI a few rounds of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapshotter.mount.journal import Journal
from snapshotter.mount.wire import InitFlag, Negotiated
from tests.support import load, processes, samples
from tests.support.images import Image, Layer, write_image
from tests.system.conftest import Node, Published, Server

pytestmark = pytest.mark.root

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "10"))
HANG = float(os.environ.get("CHAOS_HANG", "30"))
"""Seconds that a read may take at most. On a machine with nothing else to do 5 are kept (`make chaos`)."""
READERS = 4


@pytest.fixture
def loaded(server: Server, tmp_path: Path) -> Published:
    """An image with the files of `load` in two layers."""

    def make(directory: Path) -> Image:
        layers = []
        for half in (0, 1):
            layer = Layer()
            layer.directory(b"load")
            for number in range(7):
                layer.directory(f"load/d{number}".encode())
            for number in range(half, load.FILES, 2):
                layer.file(f"load/{load.path(number)}".encode(), load.content(number))
            layers.append(layer.tar())
        return write_image(directory / "load", "v1", [samples.base().tar(), *layers])

    return server.publish("load", make, tmp_path)


class Victims:
    """The processes of a daemon, and ways to kill them. Whatever dies with the daemon, it is started again."""

    def __init__(self, node: Node, seed: int) -> None:
        self._node = node
        self.random = random.Random(seed)

    def workers(self) -> list[int]:
        return self._of("snapshotter.daemon.worker_main")

    def keepers(self) -> list[int]:
        return self._of("snapshotter.mount.keeper")

    def _of(self, module: str) -> list[int]:
        root = str(self._node.snapshotter.root)
        return processes.find(lambda words: module in words and any(word.startswith(root) for word in words))

    def kill(self, pids: list[int], *, daemon: bool = False) -> None:
        service = self._node.snapshotter.service
        for pid in [*pids, *([service.pid] if daemon else [])]:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
        if daemon:
            service.process.wait()
            self._node.snapshotter.start()

    def a_worker(self) -> None:
        self.kill(self.random.sample(self.workers(), 1) if self.workers() else [])

    def all_workers(self) -> None:
        self.kill(self.workers())

    def the_daemon(self) -> None:
        self.kill([], daemon=True)

    def both(self) -> None:
        self.kill(self.workers(), daemon=True)

    def the_keeper(self) -> None:
        self.kill(self.keepers())

    def the_keeper_and_the_daemon(self) -> None:
        self.kill(self.keepers(), daemon=True)

    def any(self) -> Callable[[], None]:
        ways = [self.a_worker, self.a_worker, self.all_workers, self.the_daemon, self.both, self.the_keeper]
        return self.random.choice([*ways, self.the_keeper_and_the_daemon])


def _refuse_resend(victims: Victims) -> None:
    """From now on as if the kernel were one before Linux 6.9: INIT did not offer FUSE_HAS_RESEND."""
    changed = 0
    for pid in victims.workers():
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if "memfd:puzzlefs-mount" in os.readlink(link):
                with contextlib.closing(Journal(os.open(link, os.O_RDWR))) as memory:
                    assert memory.negotiated is not None
                    minor, flags, kernel_flags = memory.negotiated
                    memory.agree(Negotiated(minor, flags, kernel_flags & ~InitFlag.HAS_RESEND))
                    changed += 1
    assert changed


@contextlib.contextmanager
def _reading(directory: Path) -> Iterator[list[dict[str, object]]]:
    """Readers below `directory` meanwhile; afterwards the list has what each of them found."""
    command = [sys.executable, "-m", "tests.support.load", str(directory)]
    readers = [
        subprocess.Popen([*command, str(seed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for seed in range(READERS)
    ]
    results: list[dict[str, object]] = []
    try:
        yield results
        for reader in readers:
            assert reader.stdin is not None
            reader.stdin.close()
        for reader in readers:
            assert reader.stdout is not None
            reader.wait(60)
            results.append(json.loads(reader.stdout.read()))
    finally:
        for reader in readers:
            reader.kill()
        for reader in readers:
            # One whose request was taken and is never answered cannot be killed before the connection is closed.
            with contextlib.suppress(subprocess.TimeoutExpired):
                reader.wait(10)
            for pipe in (reader.stdin, reader.stdout):
                if pipe is not None:
                    pipe.close()


@pytest.mark.parametrize("resend", [True, False], ids=["resend", "before-6.9"])
def test_containers_notice_nothing(node: Node, loaded: Published, resend: bool, capsys: pytest.CaptureFixture[str]) -> None:
    seed = random.randrange(1 << 32)
    reference = node.pull_lazily(loaded.lazy)
    victims = Victims(node, seed)
    if not resend:
        _refuse_resend(victims)
    with node.containerd.detached(reference, "/bin/busybox", "sleep", "86400", snapshotter="puzzlefs") as (_, pid):
        with _reading(Path(f"/proc/{pid}/root/load")) as results:
            for number in range(ROUNDS):
                way = victims.any()
                with capsys.disabled():
                    if ROUNDS > 20:
                        print(f"round {number + 1}: {way.__name__}", flush=True)
                way()
                for chunk in (node.snapshotter.root / "chunks").glob("*/*"):
                    if victims.random.random() < 0.1:  # to be fetched again, by reads that wait
                        chunk.unlink(missing_ok=True)
                time.sleep(victims.random.uniform(0, 1))
        with capsys.disabled():
            print(f"\n{ROUNDS} rounds with seed {seed}: {results}", flush=True)
        assert [result["wrong"] for result in results] == [[]] * READERS, node.snapshotter.service.log_end(20_000)
        assert all(int(str(result["reads"])) > ROUNDS for result in results)
        assert max(float(str(result["slowest"])) for result in results) < HANG
        node.wait_for_containerd()
        # and a container that starts now has everything, too
        assert node.containerd.run(reference, "/bin/busybox", "ls", "/load", snapshotter="puzzlefs").text.split()
