"""Upstream's own program and ours, side by side: the same trees, each other's images."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapshotter.build.layout import build_layout, read_rootfs
from snapshotter.build.upstream import build_upstream
from snapshotter.format.compression import decode_seekable
from snapshotter.format.digest import Digest, from_text, sha256
from snapshotter.format.model import CHUNK_MAX, Inode
from snapshotter.registry.layout import LayoutStore
from tests.support import mounts, upstream
from tests.support.processes import CommandError, Service
from tests.support.snapshotter import puzzlefs
from tests.support.strategies import Item, trees, write
from tests.support.trees import Seen, differences, look

STEPS = [("delta", 0), ("delta", 1), ("delta", 2)]
PATIENCE = 30


def store(path: Path) -> LayoutStore:
    return LayoutStore(path, durable=False)


def blobs(layout: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (layout / "blobs" / "sha256").iterdir()}


def manifest(layout: Path, tag: str) -> dict[str, Any]:
    document = json.loads(store(layout).manifest(tag)[1])
    assert isinstance(document, dict)
    return document


def decoded(layout: Path, tag: str) -> tuple[list[list[Inode]], list[Digest]]:
    """The inodes of every metadata layer, and the manifest's chunks, with each chunk named by its raw bytes."""
    stored = blobs(layout)
    rootfs = read_rootfs(store(layout), tag)
    inodes = [list(layer) for layer in rootfs.stored()]
    rootfs.close()
    compressed = {chunk.digest: chunk.compressed for layer in inodes for inode in layer for chunk in inode.chunks}

    def raw(digest: Digest) -> Digest:
        data = stored[digest.hex()]
        return sha256(decode_seekable(data, CHUNK_MAX) if compressed[digest] else data)

    layers = [
        [replace(i, chunks=[replace(c, digest=raw(c.digest), compressed=False) for c in i.chunks]) for i in layer]
        for layer in inodes
    ]
    return layers, [raw(from_text(layer["digest"])) for layer in manifest(layout, tag)["layers"][1:]]


def assert_same_build(tree: Path, theirs: Path, ours: Path, tag: str, *options: str) -> None:
    """Both programs make the same of `tree`, but for what libzstd makes: the program on crates.io has an older one."""
    if theirs.exists():
        shutil.copytree(theirs, ours, dirs_exist_ok=True)  # the same base, to the byte
    base = options[options.index("-b") + 1] if "-b" in options else None
    built = build_upstream(tree, store(ours), tag, base=base, compress="-c" in options)
    printed = upstream.build(tree, theirs, tag, *options)
    if "-c" in options:
        assert decoded(ours, tag) == decoded(theirs, tag)
    else:
        assert built.verity.hex() == printed


@pytest.mark.parametrize("options", [(), ("-c",)], ids=["raw", "zstd"])
def test_deltas_of_the_golden_tree(golden_tree: Callable[[str, int], Path], tmp_path: Path, options: tuple[str, ...]) -> None:
    """Layers over layers, with and without compression, mixed."""
    for step in range(3):
        more = ("-b", f"v{step - 1}") if step else ()
        chosen = options if step != 1 else ()
        assert_same_build(golden_tree("delta", step), tmp_path / "theirs", tmp_path / "ours", f"v{step}", *chosen, *more)


_SETTINGS = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@contextlib.contextmanager
def fresh(ext4: Path) -> Iterator[Path]:
    """A directory on ext4 for one example."""
    work = ext4 / "example"
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work)


@_SETTINGS
@given(items=trees(), compress=st.booleans())
def test_any_tree(ext4: Path, items: list[Item], compress: bool) -> None:
    """Hard links, devices, names of every kind."""
    with fresh(ext4) as work:
        write(items, work / "tree")
        assert_same_build(work / "tree", work / "theirs", work / "ours", "v", *(["-c"] if compress else []))


@_SETTINGS
@given(steps=st.lists(trees(6), min_size=2, max_size=3))
def test_any_tree_over_any_other(ext4: Path, steps: list[list[Item]]) -> None:
    """As far as upstream's program gets: it stops at a name that comes back, and panics at some others."""
    with fresh(ext4) as work:
        for step, items in enumerate(steps):
            write(items, work / f"tree{step}")
            options = ["-b", f"v{step - 1}"] if step else []
            try:
                assert_same_build(work / f"tree{step}", work / "theirs", work / "ours", f"v{step}", *options)
            except CommandError:
                assert step
                return


# Each other's images.


@contextlib.contextmanager
def mounted_by_upstream(image: str, where: Path) -> Iterator[None]:
    """Mounted by its program, in the foreground; it says on a fifo when it is."""
    where.mkdir()
    fifo = where.with_suffix(".fifo")
    os.mkfifo(fifo)
    service = Service([upstream.program(), "mount", "-f", "-i", fifo, image, where], where.with_suffix(".log"))
    try:
        with open(fifo) as said:
            assert said.read() == "s", service.log.read_text()
        yield
    finally:
        service.process.send_signal(signal.SIGINT)
        service.process.wait(PATIENCE)
        mounts.unmount_all(where)


def without(seen: dict[bytes, Seen], **fields: Any) -> dict[bytes, Seen]:
    """What its mount shows at all: no times, no link counts, and the size of regular files only."""
    return {
        name: replace(
            entry, mtime_ns=0, links=0, twins=(), device=0, size=entry.size if entry.mode & 0o170000 == 0o100000 else None
        )
        for name, entry in seen.items()
    }


@pytest.mark.parametrize("options", [(), ("-c",), ("--upstream",), ("--upstream", "-c"), ("--mtime", "zero")], ids=" ".join)
def test_upstream_mounts_what_we_build(
    golden_tree: Callable[[str, int], Path], tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Every type of file, every name, every xattr of the basic tree."""
    tree = golden_tree("basic", 0)
    puzzlefs("build", *options, str(tree), f"{tmp_path}/image:v")
    with mounted_by_upstream(f"{tmp_path}/image:v", tmp_path / "m"):
        seen = look(os.fsencode(tmp_path / "m"))
    assert differences(without(look(os.fsencode(tree))), without(seen)) == []


def test_upstream_mounts_our_deltas(golden_tree: Callable[[str, int], Path], tmp_path: Path) -> None:
    """Directories with names that are gone are listed whole, names that come back are there, parted links are two files."""
    layout = store(tmp_path / "image")
    steps = [*STEPS, ("delta", 0), ("basic", 0)]
    for number, step in enumerate(steps):
        tree = golden_tree(*step)
        build_layout(tree, layout, f"v{number}", base=f"v{number - 1}" if number else None, compress=number % 2 == 1)
        with mounted_by_upstream(f"{tmp_path}/image:v{number}", tmp_path / f"m{number}"):
            seen = look(os.fsencode(tmp_path / f"m{number}"))
        assert differences(without(look(os.fsencode(tree))), without(seen)) == []


@pytest.mark.parametrize("compress", [False, True])
def test_upstream_extracts_what_we_build(golden_tree: Callable[[str, int], Path], tmp_path: Path, compress: bool) -> None:
    """A tree without what makes its extraction fail."""
    tree = golden_tree("large-stream", 0)
    build_layout(tree, store(tmp_path / "image"), "v", compress=compress)
    subprocess.run([upstream.program(), "extract", f"{tmp_path}/image:v", tmp_path / "out"], check=True, capture_output=True)
    assert differences(without(look(os.fsencode(tree))), without(look(os.fsencode(tmp_path / "out")))) == []


def timeless(seen: dict[bytes, Seen]) -> dict[bytes, Seen]:
    return {name: replace(entry, mtime_ns=0) for name, entry in seen.items()}


@pytest.mark.parametrize("options", [(), ("-c",)], ids=["raw", "zstd"])
@pytest.mark.parametrize("case", ["basic", "mixed-zstd", "large-directory"])
def test_we_read_what_upstream_builds(
    golden_tree: Callable[[str, int], Path], tmp_path: Path, case: str, options: tuple[str, ...]
) -> None:
    """Mounted, extracted and verified by us: all of it but times, which that format has not."""
    tree = golden_tree(case, 0)
    upstream.build(tree, tmp_path / "image", "v", *options)
    expected = timeless(look(os.fsencode(tree)))
    puzzlefs("verify", f"{tmp_path}/image:v")
    puzzlefs("extract", f"{tmp_path}/image:v", str(tmp_path / "out"))
    assert differences(expected, timeless(look(os.fsencode(tmp_path / "out")))) == []
    (tmp_path / "m").mkdir()
    puzzlefs("mount", f"{tmp_path}/image:v", str(tmp_path / "m"))
    try:
        assert differences(expected, timeless(look(os.fsencode(tmp_path / "m")))) == []
    finally:
        puzzlefs("umount", str(tmp_path / "m"))


@pytest.mark.parametrize("options", [(), ("-c",)], ids=["raw", "zstd"])
def test_we_read_upstreams_deltas(golden_tree: Callable[[str, int], Path], tmp_path: Path, options: tuple[str, ...]) -> None:
    """Where upstream's own extraction fails; of two files with one number, which it lost, either one is found."""
    for step in range(3):
        tree = golden_tree("delta", step)
        upstream.build(tree, tmp_path / "image", f"v{step}", *options, *(["-b", f"v{step - 1}"] if step else []))
        puzzlefs("verify", f"{tmp_path}/image:v{step}")
        puzzlefs("extract", f"{tmp_path}/image:v{step}", str(tmp_path / f"out{step}"))
        found = differences(timeless(look(os.fsencode(tree))), timeless(look(os.fsencode(tmp_path / f"out{step}"))))
        assert [line for line in found if "linked-" not in line.partition(":")[0]] == []
