"""Runs the tests of ``inside`` where systemd is process 1, and looks at the shipped units."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support import tools
from tests.support.systemd import Container

pytestmark = pytest.mark.root

INSIDE = Path(__file__).parent / "inside" / "test_service.py"


def test_the_unit_says_nothing_that_systemd_does_not_understand(container: Container) -> None:
    container.run("ln", "-sf", Path(sys.executable).with_name("puzzlefs-snapshotter"), "/usr/local/bin/puzzlefs-snapshotter")
    done = container.run("systemd-analyze", "verify", "--man=no", tools.ROOT / "systemd/puzzlefs-snapshotter.service")
    assert done.stdout + done.stderr == ""


def test_under_systemd(container: Container) -> None:
    done = container.run(
        *("env", "INSIDE_SYSTEMD=1", sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-x", "-q", INSIDE),
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
