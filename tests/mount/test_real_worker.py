"""The daemon's own worker, with its whole chain of chunk stores: a thousand mounts come and go, hundreds are there at once."""

from __future__ import annotations

import contextlib
import os
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.build.chunk import Cutting
from snapshotter.daemon import worker_main
from snapshotter.daemon.config import Config
from snapshotter.daemon.sources import LayerSource
from snapshotter.mount.workerclient import WorkerClient
from snapshotter.mount.workerproto import AddMount, Gone
from tests.mount.engines import PATIENCE, Daemon
from tests.mount.source import PIECE, Builder

CONTENT = b"c" * PIECE + b"and more" * 1000
HUNDREDS = 300
NOWHERE = LayerSource((), ("registry.invalid/nothing/is/fetched:1",), layer="the layer")
MEMORY_SLACK = 1 << 20
"""Bytes by which resident memory may have moved, an allocator's own affairs: 0.1 MB is usual, a KiB a mount too much."""


class RealDaemon(Daemon):
    """A daemon whose worker is the product's, over the node directory `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        super().__init__()

    def start_worker(self) -> WorkerClient:
        command = worker_main.command(Config(root=self._root), None)
        return WorkerClient.start(command, self.directory, self.events.put, lambda status: self.ended.set())

    def description(self, image: Path, mountpoint: Path, *, as_layer: bool = False) -> AddMount:
        return AddMount(str(mountpoint), str(image / "metadata"), "layer", as_layer=as_layer, store=NOWHERE.to_json())

    def held(self) -> tuple[int, int, int]:
        """Descriptors, threads, and bytes of memory that the worker has."""
        process = Path(f"/proc/{self.worker.pid}")
        resident = re.search(r"^VmRSS:\s+(\d+)", (process / "status").read_text(), re.MULTILINE)
        assert resident
        return len(os.listdir(process / "fd")), len(os.listdir(process / "task")), int(resident[1]) * 1024


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image, whose chunks are in the cache of the node ``node`` beside it."""
    return _cached_image(tmp_path / "image", CONTENT, PIECE)


def _cached_image(image: Path, content: bytes, piece: int) -> Path:
    """An image in the new directory `image`, its file cut every `piece` bytes; the chunks go to ``node`` beside it."""
    source = image.with_suffix(".source")
    (source / "directory").mkdir(parents=True)
    (source / "directory" / "file").write_bytes(content)
    builder = Builder(piece)
    builder.add_tree(source)
    builder.write(image)
    for chunk in (image / "chunks").iterdir():
        place = image.parent / "node" / "chunks" / chunk.name[:2] / chunk.name
        place.parent.mkdir(parents=True, exist_ok=True)
        chunk.rename(place)
    return image


@pytest.fixture
def daemon(image: Path, tmp_path: Path) -> Iterator[RealDaemon]:
    """A daemon with one worker over that node."""
    with contextlib.closing(RealDaemon(tmp_path / "node")) as running:
        yield running


@pytest.mark.parametrize("in_order", [True, False])
def test_the_longest_chunks_of_a_large_file(daemon: RealDaemon, tmp_path: Path, *, in_order: bool) -> None:
    """Read from front to back, and here and there first: nowhere is a chunk, or are two of them, what one read asks for."""
    piece = Cutting().longest
    content = random.Random(5).randbytes(5 * piece + 777)
    point = tmp_path / "mounted"
    daemon.mount(_cached_image(tmp_path / "large", content, piece), point)
    with (point / "directory" / "file").open("rb", buffering=0) as file:
        for at in () if in_order else (0, piece - 1, 3 * piece + 4095, len(content) - 5, 2 * piece - 60_000):
            for length in (1, 4096, 120_000):
                assert os.pread(file.fileno(), length, at) == content[at : at + length]
        assert file.read() == content
    assert daemon.worker.stats()["reads"]["read"]["failed"] == 0


def test_one_worker_serves_hundreds_of_mounts(daemon: RealDaemon, image: Path, tmp_path: Path) -> None:
    points = [tmp_path / f"m{number}" for number in range(HUNDREDS)]
    for point in points:
        daemon.mount(image, point)
    assert all((point / "directory" / "file").read_bytes() == CONTENT for point in points)
    assert set(daemon.worker.stats()["mounts"]) == set(map(str, points))


def test_what_is_unmounted_is_not_completed(daemon: RealDaemon, image: Path, tmp_path: Path) -> None:
    """The rest of a layer is to be fetched as long as it is mounted anywhere, whoever tells its worker of other places."""
    points = [tmp_path / "one", tmp_path / "two"]
    for point in points:
        daemon.mount(image, point)
    daemon.worker.update(str(points[0]), NOWHERE.to_json())
    assert list(daemon.worker.stats()["background"]) == ["the layer"]
    daemon.worker.update(str(points[0]), NOWHERE.unattended().to_json())
    assert list(daemon.worker.stats()["background"]) == ["the layer"]
    daemon.unmount(points[1])
    assert daemon.event() == Gone(str(points[1]))
    deadline = time.monotonic() + PATIENCE
    while daemon.worker.stats()["background"] and time.monotonic() < deadline:
        time.sleep(0.05)  # the mount is just being closed
    assert daemon.worker.stats()["background"] == {}


def test_after_a_thousand_mounts_all_is_as_it_was(daemon: RealDaemon, image: Path, tmp_path: Path) -> None:
    def once(number: int) -> None:
        point = tmp_path / f"m{number}"
        daemon.mount(image, point)
        assert (point / "directory" / "file").read_bytes() == CONTENT
        daemon.unmount(point)
        assert daemon.event() == Gone(str(point))

    for number in range(100):
        once(number)
    descriptors, threads, memory = daemon.held()
    for number in range(100, 1100):
        once(number)
    assert daemon.worker.stats()["mounts"] == []
    deadline = time.monotonic() + PATIENCE
    while (after := daemon.held())[:2] != (descriptors, threads) and time.monotonic() < deadline:
        time.sleep(0.05)  # the last mount is just being closed
    assert after[0] <= descriptors
    assert after[1] <= threads
    assert after[2] <= memory + MEMORY_SLACK
