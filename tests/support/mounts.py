"""Mounts of this mount namespace: list, make, undo."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from tests.support.processes import run

_libc = ctypes.CDLL(None, use_errno=True)
_MNT_DETACH = 2


def mount_points(below: Path) -> list[bytes]:
    """Mount points at or below a directory, the latest mounted first."""
    root = os.fsencode(below.resolve())
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        point = re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), line.split(b" ")[4])
        if point == root or point.startswith(root + b"/"):
            found.append(point)
    return found[::-1]


def unmount_all(below: Path) -> list[bytes]:
    """Detach every mount at or below a directory; returns which there were."""
    points = mount_points(below)
    for point in points:
        _libc.umount2(point, _MNT_DETACH)
    return points


@contextlib.contextmanager
def mounted(mounts_json: str, target: Path) -> Iterator[Path]:
    """What ``ctr snapshots view --mounts`` printed, mounted at a directory for a while."""
    mounts = json.loads(mounts_json)
    assert len(mounts) == 1, mounts
    mount = mounts[0]
    target.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", mount["Type"], mount["Source"], target, "-o", ",".join(mount["Options"]))
    try:
        yield target
    finally:
        run("umount", target)
