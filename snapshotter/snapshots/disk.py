"""Measuring and deleting directory trees that a container may have shaped: any depth, any names, changing meanwhile."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from snapshotter.snapshots.model import Usage

_LOG = logging.getLogger(__name__)

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_BLOCK = 512
"""Unit of ``st_blocks`` (inode(7))."""


def usage(top: Path) -> Usage:
    """What `top` and everything below takes on disk; a hard-linked inode counts once.

    A container may be writing there: what vanishes meanwhile is not counted. Descriptors and memory stay bounded however
    deep the tree is: the walk holds one directory open and goes back by "..".

    Raises:
        OSError: `top` itself cannot be read.
    """
    walk = _Walk()
    current = os.open(top, _DIRECTORY)
    try:
        pending = [(_identity(current), walk.count(current))]
        while pending:
            _, names = pending[-1]
            if names:
                try:
                    child = os.open(names.pop(), _DIRECTORY, dir_fd=current)
                except OSError:
                    continue
                os.close(current)
                current = child
                pending.append((_identity(current), walk.count(current)))
                continue
            pending.pop()
            if pending:
                above = os.open("..", _DIRECTORY, dir_fd=current)
                os.close(current)
                current = above
                if _identity(current) != pending[-1][0]:
                    # Somebody moved a directory under us; its new place may be anywhere, so stop here.
                    _LOG.warning("usage of %s is incomplete: a directory was moved while it was measured", top)
                    break
    finally:
        os.close(current)
    return Usage(walk.size, walk.inodes)


def remove_tree(top: Path) -> None:
    """Delete `top` and everything below it.

    ``shutil.rmtree`` recurses, holding a descriptor for every level, and fails on a tree as deep as a container can make
    it. Here every directory that is found is moved up into `top`, so that no path is ever longer than two names.

    Raises:
        OSError: something cannot be deleted (a mountpoint, an immutable file). What is left, another call can delete.
    """
    if not stat.S_ISDIR(os.lstat(top).st_mode):
        os.unlink(top)
        return
    failure: OSError | None = None
    root = os.open(top, _DIRECTORY)
    try:
        moved, queue = 0, _clear(root, root, 0)[1]
        while queue:
            name = queue.pop()
            try:
                inner = os.open(name, _DIRECTORY, dir_fd=root)
                try:
                    moved, more = _clear(inner, root, moved)
                finally:
                    os.close(inner)
                queue += more
                os.rmdir(name, dir_fd=root)
            except OSError as error:
                failure = failure or error
    finally:
        os.close(root)
    try:
        os.rmdir(top)
    except OSError as error:
        raise failure or error from None


def _clear(directory: int, root: int, moved: int) -> tuple[int, list[str]]:
    """Delete the files of `directory` and move its directories into `root`; how many were moved so far, and their names."""
    found = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.name, dir_fd=directory)
            elif directory == root:
                found.append(entry.name)
            else:
                # NUL and / aside, a name can be anything, so a free one is found by trying.
                while True:
                    moved += 1
                    name = f".removed-{moved}"
                    if not _exists(name, root):
                        break
                os.rename(entry.name, name, src_dir_fd=directory, dst_dir_fd=root)
                found.append(name)
    return moved, found


def _exists(name: str, directory: int) -> bool:
    try:
        os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        return False
    return True


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


class _Walk:
    """The sums so far."""

    def __init__(self) -> None:
        self.size = 0
        self.inodes = 0
        self._linked: set[tuple[int, int]] = set()

    def count(self, directory: int) -> list[str]:
        """Add `directory` and the entries in it that are no directories; answer the names of those that are."""
        self._add(os.fstat(directory))
        names = []
        with os.scandir(directory) as entries:
            for entry in entries:
                try:
                    if entry.is_dir(follow_symlinks=False):
                        names.append(entry.name)
                    else:
                        self._add(entry.stat(follow_symlinks=False))
                except FileNotFoundError:
                    continue
        return names

    def _add(self, status: os.stat_result) -> None:
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            identity = (status.st_dev, status.st_ino)
            if identity in self._linked:
                return
            self._linked.add(identity)
        self.size += status.st_blocks * _BLOCK
        self.inodes += 1
