"""Goes through everything that is kept on a node and checks it against its name: chunks, indexes of packs, layers' metadata.

A daemon may be at work meanwhile: what vanishes is passed over, and nothing is deleted unless the caller asks for it. A reader
would find what is wrong too, drop it and fetch it again, but only when it comes by.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

from snapshotter.chunkstore.publish import TEMPORARY
from snapshotter.errors import CorruptError
from snapshotter.format.digest import sha256
from snapshotter.format.model import CHUNK_MAX
from snapshotter.format.pack import PackIndex
from snapshotter.format.rootfs import Rootfs

_INDEX = re.compile(r"[0-9a-f]{64}\.([0-9]{1,13})\+([0-9]{1,9})\.index\Z")
_CHUNK = re.compile(r"[0-9a-f]{64}\Z")

PROBLEMS_MAX = 1000
"""Most problems that are listed; all are counted."""


@dataclass(slots=True)
class Scanned:
    """What was looked at, and what is wrong: a line for each. `dropped`: files that were deleted for it."""

    chunks: int = 0
    indexes: int = 0
    metadata: int = 0
    bytes: int = 0
    errors: int = 0
    dropped: int = 0
    problems: list[str] = field(default_factory=list)


def scan(root: Path, *, drop: bool = False, progress: Callable[[int, int], None] = lambda done, total: None) -> Scanned:
    """Check everything below `root`, a snapshotter's. With `drop`, chunks and indexes that are wrong are deleted.

    Metadata is never deleted: it would have to be fetched before the layer could be mounted again. `progress` is told how many
    of how many files are done.

    Raises:
        OSError: a directory cannot be listed.
    """
    found = Scanned()
    files = [*_files(root / "chunks", _CHUNK), *_files(root / "packs", _INDEX)]
    layers = [path for path in _list(root / "layers") if _CHUNK.match(path.name)]
    for number, path in enumerate(files, 1):
        is_index = path.suffix == ".index"
        problem = _check(path, _index_problem if is_index else _chunk_problem, found)
        if problem is not None and drop:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
                found.dropped += 1
        found.indexes += is_index
        found.chunks += not is_index
        progress(number, len(files) + len(layers))
    for number, layer in enumerate(layers, 1):
        if (layer / "metadata").exists():
            _check(layer / "metadata", _metadata_problem, found)
            found.metadata += 1
        progress(len(files) + number, len(files) + len(layers))
    return found


def _check(path: Path, check: Callable[[Path, BufferedReader], str | None], found: Scanned) -> str | None:
    try:
        with path.open("rb") as file:
            problem = check(path, file)
            found.bytes += os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return None
    except OSError as error:  # EIO too, which is the kernel's fs-verity or the disk
        problem = f"cannot be read: {error.strerror}"
    if problem is not None:
        found.errors += 1
        if len(found.problems) < PROBLEMS_MAX:
            found.problems.append(f"{path} {problem}")
    return problem


def _chunk_problem(path: Path, file: BufferedReader) -> str | None:
    data = file.read()
    if len(data) > CHUNK_MAX:
        return f"has {len(data)} bytes; a chunk has at most {CHUNK_MAX}"
    actual = sha256(data).hex()
    return None if actual == path.name else f"holds something else: its bytes have the digest sha256:{actual}"


def _index_problem(path: Path, file: BufferedReader) -> str | None:
    data = file.read()
    place = _INDEX.match(path.name)
    stored = data[32:]
    if place is None or len(stored) != int(place[2]) or sha256(stored) != data[:32]:
        return "does not match its checksum"
    try:
        PackIndex.parse(stored, int(place[1]))
    except CorruptError as error:
        return f"is no index: {error}"
    return None


def _metadata_problem(path: Path, file: BufferedReader) -> str | None:
    actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != path.parent.name:
        return f"is not that of its layer: it has the diff ID sha256:{actual}"
    try:
        Rootfs.of_file(path).close()
    except CorruptError as error:
        return f"is no metadata: {error}"
    return None


def _files(directory: Path, name: re.Pattern[str]) -> Iterator[Path]:
    """The files of that name in a directory and those below it, temporary ones left out."""
    for path in _list(directory):
        if path.name == TEMPORARY:
            continue
        if path.is_dir():
            yield from _files(path, name)
        elif name.match(path.name):
            yield path


def _list(directory: Path) -> list[Path]:
    try:
        return sorted(directory / name for name in os.listdir(directory))
    except FileNotFoundError:
        return []
