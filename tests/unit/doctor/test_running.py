"""What of a running process is used."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.doctor.running import may_be_run


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program below a directory of this user's alone."""
    return Path(shutil.copy("/bin/sleep", tmp_path / "sleep"))


@pytest.fixture
def started(program: Path) -> Iterator[int]:
    """A process that runs it."""
    with subprocess.Popen([program, "60"]) as process:
        yield process.pid
        process.kill()


def test_a_program_that_only_we_can_change(started: int) -> None:
    assert may_be_run(started)


def test_a_program_that_others_can_change(program: Path, started: int) -> None:
    program.chmod(0o777)
    assert not may_be_run(started)


def test_a_program_in_whose_place_others_can_put_another(program: Path, started: int) -> None:
    program.parent.chmod(0o777)
    assert not may_be_run(started)


def test_a_process_that_is_gone() -> None:
    assert not may_be_run(0)
