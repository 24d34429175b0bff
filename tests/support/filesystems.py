"""File systems of their own for a test: ext4, xfs and btrfs on loop devices, and tmpfs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tests.support.processes import run

KINDS = ("ext4", "xfs", "btrfs", "tmpfs")

_SIZE = 512 << 20
"""The least that mkfs.xfs takes is 300 MiB; the file is sparse."""
_MAKE = {"ext4": ("mkfs.ext4", "-q", "-F"), "xfs": ("mkfs.xfs", "-q", "-f"), "btrfs": ("mkfs.btrfs", "-q", "-f")}


@contextlib.contextmanager
def filesystem(kind: str, work: Path, *options: str, size: int = _SIZE) -> Iterator[Path]:
    """A new file system of that kind (`options` are mkfs's), mounted below the directory `work` for a while. Needs root."""
    work.mkdir(parents=True, exist_ok=True)
    mountpoint = work / kind
    mountpoint.mkdir()
    image = work / f"{kind}.img"
    if kind == "tmpfs":
        run("mount", "-t", kind, "-o", f"size={size}", "none", mountpoint)
    else:
        with image.open("wb") as file:
            os.truncate(file.fileno(), size)
        run(*_MAKE[kind], *options, image)
        run("mount", "-t", kind, "-o", "loop", image, mountpoint)
    try:
        yield mountpoint
    finally:
        run("umount", mountpoint)
        mountpoint.rmdir()
        image.unlink(missing_ok=True)
