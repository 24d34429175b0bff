"""One virtual machine for all tests of this directory; those in ``inside`` run in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.machine import Machine, make_disk

collect_ignore = [] if "INSIDE_MACHINE" in os.environ else ["inside"]


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The disk /dev/disk/data of the machine, as the host sees it."""
    return make_disk(tmp_path_factory.mktemp("vm") / "data.img", 128)


@pytest.fixture(scope="session")
def machine(disk: Path) -> Iterator[Machine]:
    """A machine with this source tree and that disk."""
    with Machine(disk.parent, code=True, disks=[disk]) as machine:
        yield machine
