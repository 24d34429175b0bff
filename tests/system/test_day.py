"""A day's use in a minute: pulls, runs, commits and removals in random order in two namespaces, with kill -9 among them.

``make day`` does hundreds of them; CI a part.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from snapshotter.daemon import invariants
from tests.support import samples
from tests.support.images import Image, Layer, write_image
from tests.support.processes import CommandError
from tests.support.releases import RELEASES, Release
from tests.system.conftest import Node, Published, Server, clear, started
from tests.system.test_chaos import Victims

pytestmark = pytest.mark.root

STEPS = int(os.environ.get("DAY_STEPS", "40"))
SEED = int(os.environ.get("DAY_SEED", "1"))
READ = ("/bin/sh", "-c", "cat /data/* | md5sum")
"""Reads the files of an image of `versions`, and of every image that a container of one becomes."""
KEPT_ON_PURPOSE = ("chunks", "workers", "metadata.db", "metadata.db-wal", "metadata.db-shm", "lock")
"""What a root holds besides snapshots: the cache, which has its own bound, sockets, the database."""


@pytest.fixture
def versions(server: Server, tmp_path: Path) -> list[Published]:
    """Three versions of an image: one layer in common, one that changes in a part."""

    def version(number: int) -> Callable[[Path], Image]:
        def make(directory: Path) -> Image:
            layer = Layer()
            layer.directory(b"data")
            for name in range(4):
                layer.file(f"data/{name}".encode(), samples.noise(150_000, 100 + name + (number if name == 3 else 0)))
            return write_image(directory / f"v{number}", "v1", [samples.base().tar(), layer.tar()])

        return make

    return [server.publish(f"day{number}", version(number), tmp_path) for number in range(3)]


class Day:
    """What happens on a node, and what must then be true."""

    def __init__(self, node: Node, versions: list[Published], seed: int) -> None:
        self.node = node
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self._versions = versions
        self._victims = Victims(node, seed)
        self.namespaces = [f"pz{uuid.uuid4().hex[:10]}" for _ in range(2)]
        # by namespace: the reference of an image, and what a container of it must say
        self._images: dict[str, dict[str, str]] = {name: {} for name in self.namespaces}
        self._truth: dict[str, str] = {}
        self._committed = 0

    def learn(self) -> None:
        """What containers must say: what they say of the ordinary images on containerd's overlayfs."""
        with self.inside(f"{self.namespaces[0]}x"):
            for published in self._versions:
                reference = self.node.pull(published.ordinary, "overlayfs")
                self._truth[published.lazy] = self.node.go("run", reference, *READ, snapshotter="overlayfs")
            clear(self.node)

    @contextlib.contextmanager
    def inside(self, namespace: str):  # type: ignore[no-untyped-def]
        """Commands go to another namespace meanwhile."""
        before, self.node.containerd.namespace = self.node.containerd.namespace, namespace
        try:
            yield
        finally:
            self.node.containerd.namespace = before

    def step(self) -> None:
        """One thing that happens."""
        steps: list[Callable[[str], None]] = [
            *[self.pull] * 4,
            self.pull_ordinary,
            self.download,
            *[self.run] * 5,
            *[self.commit] * 2,
            *[self.remove] * 3,
            self.prune,
            self.kill,
            self.kill_in_a_pull,
            self.restart,
        ]
        chosen = self.random.choice(steps)
        namespace = self.random.choice(self.namespaces)
        with self.inside(namespace):
            chosen(namespace)
        self.done[chosen.__name__] += 1

    def pull(self, namespace: str) -> None:
        """A lazy pull."""
        name = self.random.choice(self._versions).lazy
        self.node.go("pull", self.node.reference(name))
        self._images[namespace][self.node.reference(name)] = self._truth[name]

    def pull_ordinary(self, namespace: str) -> None:
        """A pull of an image that was never converted."""
        published = self.random.choice(self._versions)
        self.node.go("pull", self.node.reference(published.ordinary))
        self._images[namespace][self.node.reference(published.ordinary)] = self._truth[published.lazy]

    def download(self, namespace: str) -> None:
        """A pull of everything, unpacked without labels where containerd has our differ."""
        if self.node.containerd.release.version < (1, 7):
            return self.pull(namespace)
        name = self.random.choice(self._versions).lazy
        self.node.go("pull-no-unpack", self.node.reference(name))
        self.node.go("unpack", self.node.reference(name))
        self._images[namespace][self.node.reference(name)] = self._truth[name]
        return None

    def run(self, namespace: str) -> None:
        """A container, to its end: it says what is right."""
        if self._images[namespace]:
            reference, truth = self.random.choice(sorted(self._images[namespace].items()))
            assert self.node.go("run", reference, *READ) == truth, reference

    def commit(self, namespace: str) -> None:
        """A container's changes become an image."""
        if self._images[namespace]:
            reference = self.random.choice(sorted(self._images[namespace]))
            self._committed += 1
            container, image = f"committed{self._committed}", f"committed.example/image:{self._committed}"
            script = f"echo {self._committed} >/data/0; rm -f /data/1; cat /data/* | md5sum"
            truth = self.node.go("create", reference, container, "/bin/sh", "-c", script)
            self.node.go("commit", container, image)
            self._images[namespace][image] = truth

    def remove(self, namespace: str) -> None:
        """An image is removed, and containerd collects its garbage."""
        if self._images[namespace]:
            reference = self.random.choice(sorted(self._images[namespace]))
            self.node.go("remove", reference)
            del self._images[namespace][reference]

    def prune(self, namespace: str) -> None:
        """Everything that nothing uses is removed."""
        self.node.go("prune")
        self._images[namespace].clear()

    def kill(self, namespace: str) -> None:
        """kill -9 of some of the snapshotter's processes."""
        self._victims.any()()
        self.wait_for_containerd()

    def restart(self, namespace: str) -> None:
        """The daemon ends and starts again."""
        assert self.node.snapshotter.terminate()[0] == 0
        self.node.snapshotter.start()
        self.wait_for_containerd()

    def kill_in_a_pull(self, namespace: str) -> None:
        """kill -9 of the daemon while it works for a client: that may fail, and works when it is tried again."""
        reference = self.node.reference(self.random.choice(self._versions).lazy)

        def pull() -> None:
            with contextlib.suppress(CommandError):
                self.node.go("pull", reference)

        working = threading.Thread(target=pull)
        working.start()
        time.sleep(self.random.random() * 0.3)
        self._victims.the_daemon()
        working.join()
        self.wait_for_containerd()
        self.node.go("pull", reference)
        self._images[namespace][reference] = next(
            truth for name, truth in self._truth.items() if self.node.reference(name) == reference
        )

    def wait_for_containerd(self) -> None:
        """containerd connects again after a pause of up to 3 s; a list of nothing it answers by itself."""
        deadline, key = time.monotonic() + 30, f"probe-{uuid.uuid4().hex[:8]}"
        while True:
            try:
                self.node.containerd.ctr("snapshots", "--snapshotter", "puzzlefs", "prepare", key)
                self.node.containerd.ctr("snapshots", "--snapshotter", "puzzlefs", "remove", key)
                return
            except CommandError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def end(self) -> None:
        """Everything is removed from both namespaces."""
        for namespace in self.namespaces:
            with self.inside(namespace):
                clear(self.node)


def _size(path: Path) -> int:
    """What a directory takes on disk, the cache left out; other file systems that are mounted there are not looked into."""
    device, total = path.stat().st_dev, 0
    for name, directories, files in os.walk(path):
        directories[:] = [
            one
            for one in directories
            if not (Path(name) == path and one in KEPT_ON_PURPOSE) and (Path(name) / one).lstat().st_dev == device
        ]
        total += sum((Path(name) / one).lstat().st_blocks * 512 for one in files if one not in KEPT_ON_PURPOSE)
    return total


@pytest.mark.parametrize("release", RELEASES if STEPS >= 200 else RELEASES[-1:], ids=lambda release: release.name)
def test_a_days_use(server: Server, go_program: Path, versions: list[Published], release: Release) -> None:
    """Then rows, directories, layers, mounts and cache agree, and nothing takes space that did not before."""
    with started(server, go_program, release=release) as node:
        day = Day(node, versions, SEED)
        day.learn()
        root = node.snapshotter.root
        before = _size(root)
        for number in range(STEPS):
            try:
                day.step()
            except BaseException as error:
                error.add_note(f"step {number} of seed {SEED}, after {dict(day.done)}; {node.snapshotter.service.log_end()}")
                raise
            if number % 20 == 19:
                assert invariants.settled(root).broken == (), f"after step {number} of seed {SEED}"
        assert invariants.settled(root).broken == ()
        day.end()
        for index in (root / "packs").iterdir():  # as if a minute had passed
            os.utime(index, (0, 0))
        # containerd cleans up when it has collected its garbage; a clean-up that a kill interrupted is done at the next
        assert node.snapshotter.terminate()[0] == 0
        node.snapshotter.start()
        report = invariants.settled(root)
        assert report.broken == ()
        assert report.garbage == ()
        assert invariants.examine(root, contents=True).broken == ()
        assert node.left() == []
        assert _size(root) <= before, f"{_size(root)} bytes, {before} before"
        print(f"\n{release.name}: {sum(day.done.values())} steps: {dict(day.done)}")
