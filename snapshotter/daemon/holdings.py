"""What of which image is in a node's cache, how much of it other images have too, and what nobody has any more.

Read from the snapshotter's root alone: the layers with their metadata, and where each came from. A daemon may be at work
meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from snapshotter.chunkstore.chunkfiles import files
from snapshotter.chunkstore.directory import ChunkDirectory
from snapshotter.chunkstore.reserve import is_recent
from snapshotter.daemon.sources import LayerSource
from snapshotter.errors import NotFoundError, PuzzlefsError
from snapshotter.format.digest import Digest
from snapshotter.format.rootfs import Rootfs

UNNAMED = "(no name)"
"""For layers of which nothing says what image they are from."""


@dataclass(frozen=True, slots=True)
class Holding:
    """An image in the cache: its layers, its chunks and how many are here, the bytes that those take on the disk, and how
    many of these bytes belong to chunks that another image here has as well."""

    image: str
    layers: int
    chunks: int
    local: int
    disk: int
    shared: int

    @property
    def own(self) -> int:
        """Bytes that would be free if only this image went."""
        return self.disk - self.shared


@dataclass(frozen=True, slots=True)
class Holdings:
    """Everything in the cache of a node: by image, in all (each chunk once), the bytes of `disk` that containers have read
    recently (`chunkstore.reserve`), and what no image has."""

    images: tuple[Holding, ...]
    disk: int
    chunks: int
    recent: int
    unused: Mapping[Digest, int]


def holdings(root: Path) -> Holdings:
    """What is in the cache below `root`.

    Raises:
        NotFoundError: there is no snapshotter's root.
    """
    if not (root / "layers").is_dir():
        raise NotFoundError(f"{root} is no root of a snapshotter: nothing was ever pulled there")
    sizes: dict[Digest, int] = {}
    recent, now = 0, time.time()
    for digest, status in _chunks(root):
        sizes[digest] = status.st_blocks * 512
        recent += sizes[digest] if is_recent(status.st_mtime, now) else 0
    images: dict[str, set[Digest]] = {}
    layers: Counter[str] = Counter()
    for names, digests in _layers(root):
        for name in names:
            images.setdefault(name, set()).update(digests)
            layers[name] += 1
    users = Counter(digest for digests in images.values() for digest in digests)
    found = []
    for name, wanted in sorted(images.items()):
        local = [digest for digest in wanted if digest in sizes]
        shared = sum(sizes[digest] for digest in local if users[digest] > 1)
        found.append(Holding(name, layers[name], len(wanted), len(local), sum(sizes[digest] for digest in local), shared))
    unused = {digest: size for digest, size in sizes.items() if digest not in users}
    return Holdings(tuple(found), sum(sizes.values()), len(sizes), recent, unused)


def remove(root: Path, digests: Mapping[Digest, int]) -> int:
    """Remove chunks from the cache; the bytes that they took. One that is gone already is left out."""
    directory = ChunkDirectory(root)
    freed = 0
    for digest, size in digests.items():
        with contextlib.suppress(FileNotFoundError):
            os.unlink(directory.file(digest))
            freed += size
    return freed


def _chunks(root: Path) -> Iterator[tuple[Digest, os.stat_result]]:
    """Every cached chunk, and the status of its file."""
    with contextlib.suppress(FileNotFoundError):
        for path, status in files(os.fspath(root / "chunks")):
            name = os.path.basename(path)
            if len(name) == 64:
                with contextlib.suppress(ValueError):
                    yield Digest(bytes.fromhex(name)), status


def _layers(root: Path) -> Iterator[tuple[tuple[str, ...], list[Digest]]]:
    """Every layer on the node: the images that it is from, and its chunks. One that cannot be read is passed over."""
    for path in sorted((root / "layers").iterdir()):
        try:
            rootfs = Rootfs.of_file(path / "metadata")
        except (OSError, PuzzlefsError):
            continue
        try:
            digests = [pair.digest for pair in rootfs.verities()]
        finally:
            rootfs.close()
        names: tuple[str, ...] = ()
        with contextlib.suppress(OSError, ValueError, PuzzlefsError):
            names = LayerSource.from_json(json.loads((path / "source").read_bytes())).images
        yield names or (UNNAMED,), digests
