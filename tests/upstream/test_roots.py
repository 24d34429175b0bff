"""Whole root file systems: every file is equal after build, mount and extract, metadata included; upstream's program agrees.

The image of the demonstration always; with PUZZLEFS_ROOTS=1 (`make roots`) three larger ones from Debian too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from snapshotter.build.upstream import build_upstream
from snapshotter.registry.layout import LayoutStore
from tests.support import mounts, roots, upstream
from tests.support.snapshotter import puzzlefs
from tests.support.trees import Seen, differences, look
from tests.upstream.conftest import GOLDEN

LARGE = os.environ.get("PUZZLEFS_ROOTS") == "1"
NAMES = ["demonstration", *(sorted(roots.ROOTS) if LARGE else [])]


@pytest.fixture(scope="module", params=NAMES)
def tree(request: pytest.FixtureRequest) -> Path:
    """Each root in turn; in the larger ones, also every oddity of the golden tree."""
    if request.param == "demonstration":
        found: Path = request.getfixturevalue("debian_root")
        return found
    directory = roots.root(request.param)
    if not (directory / "odd").exists():
        subprocess.run([sys.executable, GOLDEN / "basic" / "make-tree", directory / "odd"], check=True)
    return directory


@pytest.fixture(scope="module")
def expected(tree: Path) -> dict[bytes, Seen]:
    seen = look(os.fsencode(tree))
    assert len(seen) > 10_000
    return seen


@pytest.fixture(scope="module")
def place(ext4: Path) -> Iterator[Path]:
    """Room on a file system that counts links of directories as ours does."""
    directory = ext4 / "roots"
    directory.mkdir()
    yield directory
    mounts.unmount_all(directory)
    shutil.rmtree(directory)


def timeless(seen: dict[bytes, Seen]) -> dict[bytes, Seen]:
    return {name: replace(entry, mtime_ns=0) for name, entry in seen.items()}


@pytest.mark.parametrize("options", [(), ("-c",)] if LARGE else [()], ids=lambda options: "".join(options) or "raw")
def test_equal_after_build_mount_and_extract(
    tree: Path, expected: dict[bytes, Seen], place: Path, options: tuple[str, ...]
) -> None:
    image = f"{place}/image:v"
    puzzlefs("build", *options, tree, image, timeout=1200)
    try:
        (place / "m").mkdir()
        puzzlefs("mount", "-o", "dev,suid", image, place / "m")
        assert differences(expected, look(os.fsencode(place / "m"))) == []
        puzzlefs("umount", place / "m")
        puzzlefs("extract", image, place / "out", timeout=1200)
        assert differences(expected, look(os.fsencode(place / "out"))) == []
        puzzlefs("verify", image, timeout=1200)
    finally:
        mounts.unmount_all(place)
        for name in ("m", "out", "image"):
            shutil.rmtree(place / name, ignore_errors=True)


def test_upstreams_program_builds_the_same_and_we_read_it(tree: Path, expected: dict[bytes, Seen], place: Path) -> None:
    try:
        printed = upstream.build(tree, place / "theirs", "v")
        built = build_upstream(tree, LayoutStore(place / "ours", durable=False), "v")
        assert built.verity.hex() == printed
        puzzlefs("extract", f"{place}/theirs:v", place / "out", timeout=1200)
        untimed = [
            {name: replace(seen, mtime_ns=0) for name, seen in s.items()} for s in (expected, look(os.fsencode(place / "out")))
        ]
        assert differences(*untimed) == []
    finally:
        for name in ("theirs", "ours", "out"):
            shutil.rmtree(place / name, ignore_errors=True)
