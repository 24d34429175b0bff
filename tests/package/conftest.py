"""The package and a Debian in which it is installed, for all tests of this directory."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from package import deb
from tests.support import chroots
from tests.support.chroots import Chroot

PACKAGES = ("fuse3", "init-system-helpers", "libfuse3-3", "libstdc++6", "man-db", "patchelf", "python3", "systemd")
"""What the package depends on, and what the tests look at it with."""


INSTALL = "dpkg --force-unsafe-io -i /tmp/p.deb"
FILES = "find / -xdev -not -path '/tmp/*' -not -path '/var/*' -not -path '/root/*' -not -path '/run/*' | sort"
"""Lists what the package may not leave behind."""


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package."""
    return deb.build(tmp_path_factory.mktemp("deb"), datetime.date(2026, 1, 2))


@pytest.fixture(scope="module")
def debian(package: Path) -> Iterator[Chroot]:
    """A Debian in which it is installed."""
    with chroots.debian(*PACKAGES) as chroot:
        shutil.copy(package, chroot.root / "tmp/p.deb")
        chroot.shell(f"{FILES} >/tmp/before; {INSTALL}")
        yield chroot
