"""The root directory: made safe, refused where it is not, served by one process."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from snapshotter.errors import FailedPreconditionError
from snapshotter.snapshots import paths


def test_a_new_root_is_private(tmp_path: Path) -> None:
    made = paths.prepare_root(tmp_path / "a" / "root")
    for path in (made.root, made.snapshots, made.layers):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_a_root_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    root = tmp_path / "root"
    root.mkdir()
    root.chmod(mode)
    with pytest.raises(FailedPreconditionError, match="written by others"):
        paths.prepare_root(root)


def test_a_root_of_somebody_else_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir(mode=0o700)
    os.chown(root, 4711, 4711)
    with pytest.raises(FailedPreconditionError, match="4711"):
        paths.prepare_root(root)


def test_a_link_in_the_place_of_a_directory_inside_is_refused(tmp_path: Path) -> None:
    made = paths.prepare_root(tmp_path / "root")
    made.snapshots.rmdir()
    made.snapshots.symlink_to(tmp_path)
    with pytest.raises(FailedPreconditionError, match="not a directory"):
        paths.prepare_root(tmp_path / "root")


def test_a_root_is_served_by_one_process(tmp_path: Path) -> None:
    made = paths.prepare_root(tmp_path / "root")
    program = (
        "import sys, pathlib; from snapshotter.snapshots import paths; from snapshotter.errors import FailedPreconditionError\n"
        "try: paths.lock_root(paths.prepare_root(pathlib.Path(sys.argv[1])))\n"
        "except FailedPreconditionError as error: print(error)"
    )

    def other() -> str:
        done = subprocess.run([sys.executable, "-c", program, made.root], capture_output=True, text=True, check=True)
        return done.stdout

    descriptor = paths.lock_root(made)
    assert "another process" in other()
    os.close(descriptor)
    assert other() == ""


def test_a_snapshots_directory_is_as_containerds(tmp_path: Path) -> None:
    made = paths.make_snapshot(paths.prepare_root(tmp_path / "root"), work=True, owner=(12, 34))
    assert stat.S_IMODE((made / "fs").stat().st_mode) == 0o755
    assert ((made / "fs").stat().st_uid, (made / "fs").stat().st_gid) == (12, 34)
    assert (made / "work").is_dir()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_root_whose_place_others_could_take_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "above").mkdir()
    (tmp_path / "above").chmod(mode)
    with pytest.raises(FailedPreconditionError, match="can be written by others"):
        paths.prepare_root(tmp_path / "above" / "between" / "root")


def test_a_link_to_such_a_place_is_refused(tmp_path: Path) -> None:
    """What is followed counts as well as what is named."""
    open_to_all = tmp_path / "above"
    (open_to_all / "root").mkdir(parents=True)
    open_to_all.chmod(0o777)
    (tmp_path / "link").symlink_to(open_to_all / "root")
    with pytest.raises(FailedPreconditionError, match="can be written by others"):
        paths.prepare_root(tmp_path / "link")


def test_a_root_below_somebody_elses_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "above").mkdir()
    os.chown(tmp_path / "above", 4711, 4711)
    with pytest.raises(FailedPreconditionError, match="4711"):
        paths.prepare_root(tmp_path / "above" / "root")


def test_a_sticky_directory_above_is_none_of_these(tmp_path: Path) -> None:
    """In /tmp nobody can rename what is another's."""
    (tmp_path / "above").mkdir()
    (tmp_path / "above").chmod(0o1777)
    paths.prepare_root(tmp_path / "above" / "root")
