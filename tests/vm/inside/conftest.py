"""What the tests inside the virtual machine stand on: an ext4 with fs-verity on a disk of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.disk import DEVICE


@pytest.fixture
def verity_disk() -> Iterator[Path]:
    """A fresh ext4 with the feature, mounted."""
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-O", "verity", DEVICE], check=True)
    mountpoint = Path("/mnt")
    subprocess.run(["mount", DEVICE, mountpoint], check=True)
    yield mountpoint
    subprocess.run(["umount", mountpoint], check=True)
