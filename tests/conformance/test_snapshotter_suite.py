"""containerd's own snapshotter suite, in Go, against the implementation over its socket, beside containerd's overlayfs.

`Rename` renames a directory that lies in a lower layer, which overlayfs does only where its module parameter redirect_dir
is on; so the suite runs with it on, where every check must pass, and off, where no check may fail that overlayfs passes.

``SNAPSHOTTER_COMMAND`` names another implementation to test than the one of this tree.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import goclient

HERE = Path(__file__).parent
MODULE = HERE / "snapshotter"
REDIRECT = Path("/sys/module/overlay/parameters/redirect_dir")
CHECKS = 21

pytestmark = pytest.mark.root


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory with a short path: a socket's may have 107 bytes, and pytest's own directories take most of them."""
    with tempfile.TemporaryDirectory(prefix="suite-") as path:
        yield Path(path)


def run(tests: str, directory: Path) -> tuple[set[str], set[str], str]:
    """Run Go tests; the names of those that passed and that failed, and everything they wrote."""
    command = os.environ.get("SNAPSHOTTER_COMMAND", str(Path(sys.executable).with_name("puzzlefs-snapshotter")))
    environment = {**goclient.environment(), "SNAPSHOTTER_COMMAND": command, "TMPDIR": str(directory)}
    done = subprocess.run(
        [goclient.go(), "test", "-json", "-count=1", "-timeout=8m", f"-run=^({tests})$", "."],
        cwd=MODULE,
        env=environment,
        capture_output=True,
        text=True,
    )
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    passed = {event["Test"] for event in events if event["Action"] == "pass" and "Test" in event}
    failed = {event["Test"] for event in events if event["Action"] in ("fail", "skip") and "Test" in event}
    output = done.stderr + "".join(event.get("Output", "") for event in events if event["Action"] == "output")
    assert passed or failed, output
    return passed, failed, output


def checks(names: set[str], test: str) -> set[str]:
    """The checks among `names` that belong to `test`."""
    return {name.removeprefix(test + "/") for name in names if name.startswith(test + "/")}


@pytest.fixture
def redirect_dir(request: pytest.FixtureRequest) -> Iterator[str]:
    """overlayfs' parameter as the test wants it, and as it was afterwards."""
    before = REDIRECT.read_text().strip()
    REDIRECT.write_text(request.param)
    try:
        yield request.param
    finally:
        REDIRECT.write_text(before)


@pytest.mark.parametrize("redirect_dir", ["Y"], indirect=True)
def test_every_check_passes_where_overlayfs_redirects(redirect_dir: str, short_path: Path) -> None:
    """Two whole suites at once, then one against a daemon that is killed or asked to end between calls, and started again."""
    passed, failed, output = run("TestParallel|TestRestarted", short_path)
    assert not failed, output[-20000:]
    for suite in ("TestParallel/0", "TestParallel/1", "TestRestarted"):
        assert len(checks(passed, suite)) == CHECKS, suite


@pytest.mark.parametrize("redirect_dir", ["N"], indirect=True)
def test_no_check_fails_that_containerds_overlayfs_passes(redirect_dir: str, short_path: Path) -> None:
    passed, _, output = run("TestSuite|TestOverlayfs", short_path)
    theirs = checks(passed, "TestOverlayfs")
    assert theirs >= {"Basic", "128LayersMount"}, output[-20000:]
    assert checks(passed, "TestSuite") >= theirs, output[-20000:]


def test_filters_want_what_containerds_want(short_path: Path) -> None:
    passed, failed, output = run("TestFilters", short_path)
    assert passed == {"TestFilters"}, output[-20000:]
    assert not failed
