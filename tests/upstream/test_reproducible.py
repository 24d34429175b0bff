"""The same tree is the same image: on any file system, in whatever order it was made, for any user, on any day."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from snapshotter.build import mtimes
from snapshotter.build.layout import BuiltLayout, build_layout
from snapshotter.registry.layout import LayoutStore
from tests.support.filesystems import KINDS, filesystem
from tests.upstream.conftest import GOLDEN


def paths(tree: Path) -> list[Path]:
    """Everything in a tree, what is in a directory before the directory itself."""
    return [Path(top) / name for top, *names in os.walk(tree, topdown=False) for name in (*names[0], *names[1])] + [tree]


def retime(tree: Path) -> None:
    """Times that depend on the path alone (of several, on the last one by name), nanoseconds included."""
    for path in sorted(paths(tree)):
        nanoseconds = 1_700_000_000_000_000_000 + zlib.crc32(os.fsencode(path.relative_to(tree)))
        os.utime(path, ns=(0, nanoseconds), follow_symlinks=False)


def set_xattrs_anew(tree: Path) -> None:
    """In another order than before: file systems list them in the order of setting, or of their hashes, or of their names."""
    for path in paths(tree):
        names = sorted(name for name in os.listxattr(path, follow_symlinks=False) if not name.startswith("system."))
        values = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
        for name in names:
            os.removexattr(path, name, follow_symlinks=False)
        for name in reversed(names):
            os.setxattr(path, name, values[name], follow_symlinks=False)


def build(tree: Path, work: Path, name: str, *, compress: bool = False, policy: str = "keep") -> BuiltLayout:
    store = LayoutStore(work / f"{name}-{compress}-{policy}", durable=False)
    return build_layout(tree, store, "v", compress=compress, retime=mtimes.policy(policy, {}))


@pytest.mark.parametrize("compress", [False, True], ids=["raw", "zstd"])
def test_on_every_file_system(golden_tree: Callable[[str, int], Path], tmp_path: Path, compress: bool) -> None:
    """A tree with every type of file, hard links, ACLs and many xattrs."""
    built = {}
    for number, kind in enumerate(KINDS):
        with filesystem(kind, tmp_path / "fs") as mountpoint:
            if number % 2:  # so that the numbers of inodes are others
                (mountpoint / "before").write_bytes(b"")
            tree = mountpoint / "tree"
            subprocess.run([sys.executable, GOLDEN / "basic" / "make-tree", tree], check=True)
            if number % 2:
                set_xattrs_anew(tree)
            retime(tree)
            built[kind] = build(tree, tmp_path, kind, compress=compress)
    assert len({one.verity for one in built.values()}) == 1, built
    assert len(built) == 4


def test_as_another_user(tmp_path: Path) -> None:
    """Of a tree that both may read, root and nobody build the same, at another time and into another place."""
    for directory in (tmp_path, *tmp_path.parents):
        if not directory.stat().st_mode & 0o001:
            directory.chmod(0o755)
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "file").write_bytes(b"text" * 50_000)
    os.setxattr(tree / "file", "user.key", b"value")
    os.link(tree / "file", tree / "d" / "again")
    mine = build(tree, tmp_path, "mine")
    os.utime(tree / "file", ns=(5, os.stat(tree / "file").st_mtime_ns))  # an access time, and a new change time
    out = tmp_path / "out"
    out.mkdir()
    os.chown(out, 65534, 65534)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            os.write(writing, build(tree, out, "theirs").verity)
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        theirs = pipe.read()
    os.waitpid(child, 0)
    assert theirs == mine.verity


def test_checked_out_anew(tmp_path: Path) -> None:
    """Without times, or with times clamped, it does not matter when the files were made."""
    built: dict[str, set[bytes]] = {"keep": set(), "zero": set(), "clamp": set()}
    for number in range(2):
        tree = tmp_path / f"tree{number}"
        tree.mkdir()
        (tree / "file").write_bytes(b"text")
        os.utime(tree / "file", (0, 1_700_000_000 + number))
        os.utime(tree, (0, 1_700_000_000 + number))
        for name, seen in built.items():
            retimed = mtimes.policy(name, {"SOURCE_DATE_EPOCH": "1600000000"})
            store = LayoutStore(tmp_path / f"{name}{number}", durable=False)
            seen.add(build_layout(tree, store, "v", retime=retimed).verity)
    assert {name: len(seen) for name, seen in built.items()} == {"keep": 2, "zero": 1, "clamp": 1}
    assert built["zero"] != built["clamp"]
