"""The trees of one process: what several mounts show of one metadata file is read, surveyed and decoded once.

A node mounts the same layer more than once where two namespaces of containerd, or containerd and podman, hold the same image.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from snapshotter import userns
from snapshotter.errors import CorruptError, NotFoundError
from snapshotter.format.rootfs import Rootfs
from snapshotter.mount.tree import Tree, new_cache

_Key = tuple[int, int, int, int, bool]


class Trees:
    """Opens trees, and closes each when its last user has given it back. Safe for use by many threads."""

    def __init__(self) -> None:
        self._cache = new_cache()
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
                # Into memory, not mapped: a page that the disk loses, or fs-verity refuses, would kill every mount of this
                # process by SIGBUS when it is touched.
                data = file.readall()
        except FileNotFoundError as error:
            raise NotFoundError(f"metadata of {name}: {error}") from error
        except OSError as error:
            raise CorruptError(f"metadata of {name} cannot be read: {error}") from error
        tree = Tree(Rootfs.open(data), as_layer=as_layer, overlay_prefix=userns.overlay_prefix(), cache=self._cache)
        tree.prepare()
        with self._lock:
            self._users[key] = self._users.get(key, 0) + 1
            return self._open.setdefault(key, tree)

    def close(self, tree: Tree) -> None:
        """Give `tree` back, once for each time that it was opened."""
        with self._lock:
            key = next(key for key, other in self._open.items() if other is tree)
            self._users[key] -= 1
            if self._users[key]:
                return
            del self._open[key], self._users[key]
        tree.close()
