"""What goes wrong outside shows as an error for what it concerns, and as nothing else."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.format.annotations import MEDIA_TYPE_PACK
from tests.support import samples, trees
from tests.support.images import Layer, write_image
from tests.support.processes import CommandError
from tests.system.conftest import Node, Published, Server

pytestmark = pytest.mark.root


@contextlib.contextmanager
def _changed(file: Path, offset: int) -> Iterator[None]:
    """One byte of a file is another one meanwhile."""
    with file.open("r+b") as data:
        data.seek(offset)
        before = data.read(1)
        data.seek(offset)
        data.write(bytes([before[0] ^ 0xFF]))
    try:
        yield
    finally:
        with file.open("r+b") as data:
            data.seek(offset)
            data.write(before)


def test_corrupt_pack(node: Node, server: Server, tmp_path: Path) -> None:
    """EIO for the file whose chunk is corrupt, a log line that names the pack; everything else is read right."""
    layer = samples.base()
    layer.directory(b"data")
    # stored raw, since it does not compress, so that its place in the pack can be found
    victim = samples.noise(10_000, 20)
    for name, data in ((b"before", samples.noise(300_000, 21)), (b"middle", victim * 3), (b"past", samples.noise(300_000, 22))):
        layer.file(b"data/" + name, data)
    image = write_image(tmp_path / "image", "v1", [layer.tar()])
    server.push(image, "corrupt:ordinary")
    server.convert("corrupt:ordinary", "corrupt:puzzlefs")
    packs = [str(layer["digest"]) for layer in server.layers("corrupt:puzzlefs") if layer["mediaType"] == MEDIA_TYPE_PACK]
    assert len(packs) == 1
    file = server.registry.blob_file(packs[0])
    place = file.read_bytes().find(victim[100:200])
    assert place > 0, "the chunk is not stored as it is"
    node.pull_lazily("corrupt:puzzlefs")
    with (
        _changed(file, place),
        node.containerd.snapshot(server.chain_id("corrupt:puzzlefs"), node.directory / "v", "puzzlefs") as root,
    ):
        seen = trees.look(os.fsencode(root))
    assert seen[b"data/middle"].content == errno.EIO
    assert [name for name, look in seen.items() if isinstance(look.content, int)] == [b"data/middle"]
    assert seen[b"data/past"].content == trees.sha256(samples.noise(300_000, 22))
    assert packs[0].removeprefix("sha256:")[:12] in node.snapshotter.log.read_text()
    with node.containerd.snapshot(server.chain_id("corrupt:puzzlefs"), node.directory / "v", "puzzlefs") as root:
        assert (root / "data/middle").read_bytes() == victim * 3, "readable again once the registry's copy is right"


def test_corrupt_metadata(node: Node, server: Server, tmp_path: Path) -> None:
    """A layer whose metadata is not what its digest says is refused at the pull, in one line, and nothing stays."""
    layer = Layer()
    layer.directory(b"only")
    image = write_image(tmp_path / "image", "v1", [samples.base().tar(), layer.tar()])
    server.push(image, "forged:ordinary")
    server.convert("forged:ordinary", "forged:puzzlefs")
    metadata = str(server.layers("forged:puzzlefs")[0]["digest"])
    with (
        _changed(server.registry.blob_file(metadata), 40),
        pytest.raises(CommandError, match=metadata.removeprefix("sha256:")[:12]),
    ):
        node.pull_lazily("forged:puzzlefs")
    assert node.containerd.snapshots("puzzlefs") == []
    assert node.containerd.ctr("images", "ls", "-q") == ""


def test_registry_gone(node: Node, plain: Published) -> None:
    """What was read stays readable; the rest fails within the deadline, and nothing hangs."""
    reference = node.pull_lazily(plain.lazy)
    warm = "cat /bin/busybox /data/first >/dev/null && echo read"
    assert node.containerd.run(reference, "/bin/sh", "-c", warm, snapshotter="puzzlefs").text == "read\n"
    script = "cat /data/first >/dev/null && echo local; cat /more/file >/dev/null || echo failed"
    with node.relay.gone():
        text = node.containerd.run(reference, "/bin/sh", "-c", script, snapshotter="puzzlefs", check=False, timeout=60).text
    assert "local\n" in text
    assert "failed\n" in text
    assert node.containerd.run(reference, "/bin/busybox", "md5sum", "/more/file", snapshotter="puzzlefs").text
    assert node.relay.address in node.snapshotter.log.read_text(), "the log names the host"
