"""The files of a mounted layer, copied into a directory of another snapshotter."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

from snapshotter import userns
from snapshotter.errors import FailedPreconditionError, UnavailableError
from snapshotter.snapshots import disk


def copy(source: Path, target: Path, *, whiteouts: bool) -> None:
    """Everything below `source` in `target`, an empty directory: names, owners, modes, times, xattrs, links, devices.

    `whiteouts`: `target` is an upper directory of overlayfs, which is what a mounted layer looks like. Without, nothing lies
    below `target` that could be hidden, so that what hides it is left out. If it fails, `target` is empty again.

    Raises:
        FailedPreconditionError: `target` is not empty.
        UnavailableError: a file cannot be read or written now.
    """
    if os.listdir(target):
        # not "already exists", which a client would take for the layer itself (``pkg/rootfs/apply.go``)
        raise FailedPreconditionError(f"{target} holds files already: a layer cannot be unpacked there")
    try:
        # coreutils' cp keeps all of it, of trees of any depth too
        done = subprocess.run(
            ["cp", "-a", "--", f"{source}/.", f"{target}/"],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
        if done.returncode != 0:
            raise UnavailableError(f"copying a layer to {target} failed: {done.stderr.strip()[-1000:]}")
        if not whiteouts:
            _drop_whiteouts(target)
    except BaseException:
        for name in os.listdir(target):
            disk.remove_tree(target / name)
        raise


def _drop_whiteouts(top: Path) -> None:
    """Delete the 0/0 character devices and opaque marks below `top` (Documentation/filesystems/overlayfs.rst)."""
    opaque = userns.overlay_prefix() + b"opaque"
    for _, names, files, directory in os.fwalk(os.fsencode(top), follow_symlinks=False):
        for name in files:
            status = os.lstat(name, dir_fd=directory)
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                os.unlink(name, dir_fd=directory)
        for name in names:
            path = b"/proc/self/fd/%d/%s" % (directory, name)
            if not stat.S_ISLNK(os.lstat(name, dir_fd=directory).st_mode) and opaque in map(os.fsencode, os.listxattr(path)):
                os.removexattr(path, opaque)
