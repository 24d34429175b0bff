"""What becomes of the cache under a running daemon: full, deleted, truncated, flipped. Never a wrong byte."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import samples
from tests.support.images import Image, Layer, write_image
from tests.system.conftest import Node, Published, Server

pytestmark = pytest.mark.root

FILES = {f"data/file-{number}": samples.noise(1_000_000, number) for number in range(12)}
"""More than the workers keep in memory, or nothing would be read from the cache."""


@pytest.fixture
def large(server: Server, tmp_path: Path) -> Published:
    """An image of `FILES`."""
    layer = Layer()
    layer.directory(b"data")
    for name, data in FILES.items():
        layer.file(name.encode(), data)

    def make(directory: Path) -> Image:
        return write_image(directory / "large", "v1", [samples.base().tar(), layer.tar()])

    return server.publish("large", make, tmp_path)


def read(root: Path) -> None:
    """Every file is right, from the daemon and not from what the kernel keeps of it."""
    for name, data in FILES.items():
        with (root / name).open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            found = b""
            while piece := file.read(1 << 20):
                found += piece
            assert found == data, name


def chunks(node: Node) -> Iterator[Path]:
    """The files of the cache."""
    return (path for path in (node.snapshotter.root / "chunks").rglob("*") if path.is_file() and ".tmp" not in path.parts)


def delete(node: Node) -> None:
    shutil.rmtree(node.snapshotter.root / "chunks", ignore_errors=True)


def replace_by_a_file(node: Node) -> None:
    delete(node)
    (node.snapshotter.root / "chunks").write_text("not a directory")


def truncate(node: Node) -> None:
    for path in chunks(node):
        os.truncate(path, path.stat().st_size // 2)


def empty(node: Node) -> None:
    for path in chunks(node):
        os.truncate(path, 0)


def flip(node: Node) -> None:
    for path in chunks(node):
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 3)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))


def lengthen(node: Node) -> None:
    for path in chunks(node):
        with path.open("ab") as file:
            file.write(b"more")


FAULTS: list[Callable[[Node], None]] = [delete, replace_by_a_file, truncate, empty, flip, lengthen]


def test_a_cache_that_is_damaged_under_the_daemon(node: Node, server: Server, large: Published) -> None:
    """Whatever becomes of the files, the bytes are right, with the daemon going on and after it was started again."""
    node.pull_lazily(large.lazy)
    for fault in FAULTS:
        with node.containerd.snapshot(server.chain_id(large.lazy), node.directory / "v", "puzzlefs") as root:
            read(root)
            fault(node)
            read(root)
        if fault is replace_by_a_file:
            (node.snapshotter.root / "chunks").unlink()
    node.snapshotter.terminate()
    flip(node)
    node.start_again()
    with node.containerd.snapshot(server.chain_id(large.lazy), node.directory / "v", "puzzlefs") as root:
        read(root)
    assert "Traceback" not in node.snapshotter.log.read_text()


def test_a_disk_that_is_full(node: Node, server: Server, large: Published) -> None:
    """Reads go on from memory, the log says once why nothing is kept, and what fits is kept again when there is room."""
    node.pull_lazily(large.lazy)
    cache = node.snapshotter.root / "chunks"
    cache.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(cache)], check=True)
    try:
        with node.containerd.snapshot(server.chain_id(large.lazy), node.directory / "v", "puzzlefs") as root:
            read(root)
            read(root)
        said = "cannot write to the chunk cache"  # a moment later: it is written when it is quiet
        node.snapshotter.service.wait_until(lambda: said in node.snapshotter.log.read_text(), said)
    finally:
        subprocess.run(["umount", "--lazy", str(cache)], check=True)
    assert "Traceback" not in node.snapshotter.log.read_text()


def test_all_that_is_cached_starts_without_the_registry(node: Node, server: Server, large: Published) -> None:
    """The registry is gone, and the daemon is started anew: a container whose image was read whole starts and reads it all."""
    reference = node.pull_lazily(large.lazy)
    everything = ("/bin/sh", "-c", "cat /bin/busybox /data/* | wc -c")
    before = node.containerd.run(reference, *everything, snapshotter="puzzlefs").text
    node.snapshotter.terminate()
    with node.relay.gone():
        node.start_again()
        assert node.containerd.run(reference, *everything, snapshotter="puzzlefs").text == before
