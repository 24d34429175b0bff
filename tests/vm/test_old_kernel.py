"""Mounts on the oldest kernel still to be had: it hands out no request twice, and what is killed is survived there, too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import tools
from tests.vm import images
from tests.vm.machine import Machine

pytestmark = pytest.mark.root

# One comparison is left out: it takes minutes in software emulation, and its parts are tests of their own beside it.
TESTS = {
    "recovery": "tests/mount/test_supervisor.py",
    "overlayfs": "tests/mount/test_overlay.py -k native",
    "file system": "tests/mount/test_conformance.py -k 'native and not tree_is_equal'",
}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with that kernel and this source tree."""
    with Machine(tmp_path_factory.mktemp("old"), kernel=images.OLD, code=True) as machine:
        yield machine


def test_it_hands_out_no_request_twice(old: Machine) -> None:
    """What this directory's tests of recovery are about: FUSE_NOTIFY_RESEND came with Linux 6.9."""
    major, minor = map(int, old.check("uname -r").split(".")[:2])
    assert (5, 4) <= (major, minor) < (6, 9)


@pytest.mark.parametrize("tests", TESTS.values(), ids=TESTS)
def test_with_an_old_kernel(tests: str, old: Machine) -> None:
    # not in /tmp: its tmpfs has no user attributes yet
    environment = f"TMPDIR=/var/tmp {tools.SLOWNESS}=5"
    done = old.run(f"cd /code/source && {environment} python3 -m pytest -p no:cacheprovider -q -m root {tests}", timeout=900)
    assert done.status == 0, done.output
    assert " passed" in done.output
    assert "skipped" not in done.output
