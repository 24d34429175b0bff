"""The tree that is mounted, in every form that a contestant needs: made once, kept under ``.tools/bench``.

It is the measured image (Debian 12 with Python and NumPy) unpacked, and beside it one big file whose content does not
compress, so that its chunks are stored raw.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from snapshotter.build.chunk import Cutting
from tests.support import debian, tools
from tests.support.processes import run
from tests.support.snapshotter import puzzlefs

BIG = "big-file"
BIG_SIZE = 1 << 30
TAG = "tree"

_STATE = tools.STATE / "bench"
_BLOCK = 1 << 24
_HOW = repr(Cutting())
"""How files are cut: where it was otherwise, what is there is made anew."""
_ROOTFS = "application/vnd.puzzlefs.image.rootfs.v1"


@dataclass(frozen=True, slots=True)
class Workload:
    """`tree` as a directory; as a local PuzzleFS image `layout`:`TAG` with its `metadata` message in a file; its chunks as
    the `cache_root` of a node that has them all; and as a `squashfs` image."""

    tree: Path
    layout: Path
    metadata: Path
    cache_root: Path
    squashfs: Path

    @property
    def image(self) -> str:
        """As ``puzzlefs mount`` takes it."""
        return f"{self.layout}:{TAG}"


def workload() -> Workload:
    """The tree, made if it is not there yet: half a minute and 4 GB of disk.

    Raises:
        CommandError: a tool failed.
        MissingToolError: a tool is missing.
    """
    _STATE.mkdir(parents=True, exist_ok=True)
    made = Workload(_STATE / "tree", _STATE / "layout", _STATE / "metadata", _STATE / "node", _STATE / "tree.squashfs")
    with (_STATE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        complete = _STATE / ".complete"
        if not complete.exists() or complete.read_text() != _HOW:
            for path in (made.tree, made.layout, made.cache_root):
                shutil.rmtree(path, ignore_errors=True)
            made.squashfs.unlink(missing_ok=True)
            _make(made)
            complete.write_text(_HOW)
    return made


def _make(made: Workload) -> None:
    print("unpacking the tree to be measured, and building it in every form", flush=True)
    made.tree.mkdir()
    image = debian.image()
    for layer in debian.layers(image.layout):
        run("tar", "-xzf", layer, "-C", made.tree)
    for node in (made.tree / "dev").iterdir():  # upstream's program shows no devices
        if node.is_char_device():
            node.unlink()
    noise = random.Random(1)  # noqa: S311  the same in every run
    with (made.tree / BIG).open("wb") as file:
        for _ in range(BIG_SIZE // _BLOCK):
            file.write(noise.randbytes(_BLOCK))
    puzzlefs("build", made.tree, made.image)
    blobs = made.layout / "blobs" / "sha256"
    rootfs = next(layer["digest"] for layer in _manifest(made.layout)["layers"] if layer["mediaType"] == _ROOTFS)
    shutil.copyfile(blobs / rootfs.removeprefix("sha256:"), made.metadata)
    _fill_cache(blobs, made.cache_root / "chunks")
    run(
        "mksquashfs",
        made.tree,
        made.squashfs,
        "-comp",
        "zstd",
        "-Xcompression-level",
        "3",
        "-quiet",
        "-no-progress",
        timeout=600,
    )
    os.sync()


def _fill_cache(blobs: Path, chunks: Path) -> None:
    """A local image's chunks are raw blobs named by their digests, as the cache's files are."""
    for blob in blobs.iterdir():
        place = chunks / blob.name[:2] / blob.name
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.link(blob, place)


def _manifest(layout: Path) -> dict[str, list[dict[str, str]]]:
    index = json.loads((layout / "index.json").read_text())
    digest = index["manifests"][0]["digest"].removeprefix("sha256:")
    return json.loads((layout / "blobs" / "sha256" / digest).read_text())  # type: ignore[no-any-return]
