"""``kill -9`` of everything that serves a container, at random, while its files are read and every byte is checked.

``make chaos ROUNDS=100`` does it at length; CI a few rounds of it.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from snapshotter.mount.journal import Journal
from snapshotter.mount.wire import InitFlag, Negotiated
from tests.support import processes
from tests.support.readers import reading
from tests.system.conftest import Node, Published

pytestmark = pytest.mark.root

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "10"))
HANG = float(os.environ.get("CHAOS_HANG", "30"))
"""Seconds that a read may take at most. On a machine with nothing else to do 5 are kept (`make chaos`)."""


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
        """And no other before the next one has everything: all at once is what is not survived without systemd."""
        mounts = _held_by(self.keepers())
        self.kill(self.keepers())
        self._wait_until_held(self.keepers, mounts, "the keeper was not followed by another")

    def the_keeper_and_the_daemon(self) -> None:
        """While a worker has each mount, which a killed one's successor gets from the daemon alone; and nothing else before the
        next keeper has everything."""
        mounts = _held_by(self.keepers())
        self._wait_until_held(self.workers, mounts, "a killed worker was not followed by another")
        self.kill(self.keepers(), daemon=True)
        self._wait_until_held(self.keepers, mounts, "the keeper was not followed by another")

    def _wait_until_held(self, by: Callable[[], list[int]], mounts: int, otherwise: str) -> None:
        deadline = time.monotonic() + 30
        while _held_by(by()) < mounts:
            assert time.monotonic() < deadline, otherwise
            time.sleep(0.02)

    def any(self) -> Callable[[], None]:
        ways = [self.a_worker, self.a_worker, self.all_workers, self.the_daemon, self.both, self.the_keeper]
        return self.random.choice([*ways, self.the_keeper_and_the_daemon])


def _held_by(pids: list[int]) -> int:
    """How many mounts these processes have together, by the mounts' memories."""
    held = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # it has just ended
            held += sum("memfd:puzzlefs-mount" in os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir())
    return held


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


@pytest.mark.parametrize("resend", [True, False], ids=["resend", "before-6.9"])
def test_containers_notice_nothing(node: Node, loaded: Published, resend: bool, capsys: pytest.CaptureFixture[str]) -> None:
    seed = random.randrange(1 << 32)
    reference = node.pull_lazily(loaded.lazy)
    victims = Victims(node, seed)
    if not resend:
        _refuse_resend(victims)
    with node.containerd.detached(reference, "/bin/busybox", "sleep", "86400", snapshotter="puzzlefs") as (_, pid):
        with reading(Path(f"/proc/{pid}/root/load")) as readings:
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
            print(f"\n{ROUNDS} rounds with seed {seed}: {readings.results}", flush=True)
        assert readings.wrong == [], node.snapshotter.service.log_end(20_000)
        assert readings.fewest > 0
        assert readings.slowest < HANG
        node.wait_for_containerd()
        # and a container that starts now has everything, too
        assert node.containerd.run(reference, "/bin/busybox", "ls", "/load", snapshotter="puzzlefs").text.split()
