"""The trees of one process: what several mounts show of one metadata file is read, surveyed and decoded once.

A node mounts the same layer more than once where two namespaces of containerd, or containerd and podman, hold the same image.
"""

from __future__ import annotations

import mmap
import os
import threading
from io import FileIO
from pathlib import Path

from snapshotter import userns
from snapshotter.errors import CorruptError, NotFoundError
from snapshotter.format.folded import FILED_MIN, Unfolded
from snapshotter.format.rootfs import Rootfs
from snapshotter.mount.tree import Tree, new_cache

_Key = tuple[int, int, int, int, bool]


class Trees:
    """Opens trees, and closes each when its last user has given it back. Safe for use by many threads."""

    def __init__(self) -> None:
        self._cache = new_cache()
        self._unfolded = Unfolded()
        self._open: dict[_Key, Tree] = {}
        self._users: dict[_Key, int] = {}
        self._lock = threading.Lock()

    @property
    def cached(self) -> int:
        """The weight of what is kept decoded (`tree.CACHE_WEIGHT`)."""
        return self._cache.weight

    def open(self, metadata: Path, name: str, *, as_layer: bool) -> Tree:
        """The tree of the file `metadata`, ready to be asked; every one is to be given back (`close`). `name` is for errors.

        Raises:
            NotFoundError: there is no such file.
            CorruptError: it cannot be read, or is no metadata.
        """
        try:
            with metadata.open("rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                # A file is published once and never written again; the ctime cannot be set back.
                key = (status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns, as_layer)
                with self._lock:
                    if key in self._open:
                        self._users[key] += 1
                        return self._open[key]
                tree = self._read(file, status.st_size, as_layer=as_layer)
        except FileNotFoundError as error:
            raise NotFoundError(f"metadata of {name}: {error}") from error
        except OSError as error:
            raise CorruptError(f"metadata of {name} cannot be read: {error}") from error
        with self._lock:
            self._users[key] = self._users.get(key, 0) + 1
            kept = self._open.setdefault(key, tree)
        if kept is not tree:
            tree.close()
        return kept

    def _read(self, file: FileIO, size: int, *, as_layer: bool) -> Tree:
        # Into memory, not mapped: a page that the disk loses, or fs-verity refuses, would kill every mount of this process by
        # SIGBUS when it is touched. And into memory that goes back to the kernel when the message is folded.
        if size > FILED_MIN:
            rootfs = Rootfs.filed(self._unfolded, os.dup(file.fileno()), size)
            tree = self._tree(rootfs, as_layer=as_layer)
            try:
                tree.prepare()
            except BaseException:
                tree.close()
                raise
            return tree
        with mmap.mmap(-1, max(size, 1)) as data:
            if file.readinto(data) != size:
                raise CorruptError("rootfs metadata is shorter than it was when it was opened")
            rootfs = Rootfs.open(data)
            tree = self._tree(rootfs, as_layer=as_layer)
            tree.prepare()
            rootfs.fold(self._unfolded, os.dup(file.fileno()))
        return tree

    def _tree(self, rootfs: Rootfs, *, as_layer: bool) -> Tree:
        return Tree(rootfs, as_layer=as_layer, overlay_prefix=userns.overlay_prefix(), cache=self._cache)

    def close(self, tree: Tree) -> None:
        """Give `tree` back, once for each time that it was opened."""
        with self._lock:
            key = next(key for key, other in self._open.items() if other is tree)
            self._users[key] -= 1
            if self._users[key]:
                return
            del self._open[key], self._users[key]
        tree.close()
