"""The cache's files: ``<root>/chunks/<2 hex>/<64 hex>``, one raw chunk each, mode 0600.

A file is published by temporary name and rename, without fsync: at one chunk per 64 KiB an fsync each would bring a disk
that writes hundreds of MB/s down to a few, and it is not needed, because every file is checked against its name when it is
first read after a start. A file that a power cut left torn is found then, dropped and fetched again.

"First read" is remembered per process in a bounded map from digest to the file's identity (inode, size, mtime); a file
that was replaced, cut or written to since is checked again, and so is one that fell out of the map. What nobody can see
from here, bits that change under an unchanged mtime, is what fs-verity is for.

Several processes may use one directory: names are content, so whoever renames last changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from snapshotter.errors import CorruptError
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.model import CHUNK_MAX

VERIFIED_MAX = 32768
"""Digests that are remembered as checked: 2 GiB of average chunks, about 7 MB of memory. Checking again costs 40 µs."""

TOUCH_INTERVAL = 600.0
"""Seconds after which a read renews a file's access time, the record that eviction goes by. It is set explicitly because
mounts with noatime do not keep it; at this interval it costs nothing, and the order of eviction is right to ten minutes."""

TEMPORARY = ".tmp"
"""The directory, beside the chunks' own, in which files are written before they are renamed."""

STALE_TEMPORARY = 3600.0
"""Age in seconds at which a temporary file belongs to nobody any more: writing one takes milliseconds."""


class ChunkDirectory:
    """Chunk files by digest. `load` verifies; `store` trusts its caller to have done so."""

    def __init__(self, root: Path, *, verified_max: int = VERIFIED_MAX) -> None:
        self.path = root / "chunks"
        self._base = os.fspath(self.path)
        self._verified: dict[Digest, int] = {}
        self._verified_max = verified_max
        self._lock = threading.Lock()

    def file(self, digest: Digest) -> str:
        """The path of the file that holds, or would hold, the chunk."""
        name = digest.hex()
        return f"{self._base}/{name[:2]}/{name}"

    def knows(self, digest: Digest) -> bool:
        """Whether this process has stored or checked the chunk and has not missed it since."""
        return digest in self._verified

    def exists(self, digest: Digest) -> bool:
        """Whether there is a file for the chunk."""
        if os.path.exists(self.file(digest)):
            return True
        self._forget(digest)
        return False

    def size(self, digest: Digest) -> int | None:
        """Bytes that the chunk's file takes on the disk, None if there is none."""
        try:
            return os.stat(self.file(digest), follow_symlinks=False).st_blocks * 512
        except OSError:
            return None

    def usage(self) -> tuple[int, int]:
        """Bytes that all chunks take on the disk, and how many they are; 0.1 s for 100,000."""
        used = count = 0
        for status in _statuses(self._base):
            used += status.st_blocks * 512
            count += 1
        return used, count

    def load(self, digest: Digest) -> bytes | None:
        """The chunk's raw bytes, None if there is no file.

        Raises:
            CorruptError: the file held something else; it has been removed.
            OSError: the file cannot be read.
        """
        path = self.file(digest)
        try:
            # O_NONBLOCK: opening a fifo that somebody put there must not hang.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            self._forget(digest)
            return None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= CHUNK_MAX:
                raise self._drop(digest, f"is no file of 1 to {CHUNK_MAX} bytes")
            raw = _read(descriptor, status.st_size)
            identity = _identity(status)
            if self._verified.get(digest) != identity:
                if len(raw) != status.st_size or sha256(raw) != digest:
                    raise self._drop(digest, "does not match its name")
                self._remember(digest, identity)
            elif len(raw) != status.st_size:
                raise self._drop(digest, "was cut while it was read")
            if time.time() - status.st_atime > TOUCH_INTERVAL:
                with contextlib.suppress(OSError):
                    os.utime(descriptor, ns=(time.time_ns(), status.st_mtime_ns))
            return raw
        finally:
            os.close(descriptor)

    def store(self, digest: Digest, raw: bytes) -> None:
        """Publish the chunk.

        Raises:
            OSError: it cannot be written; nothing is left behind.
        """
        temporary = f"{self._base}/{TEMPORARY}/{os.getpid()}-{secrets.token_hex(8)}"
        path = self.file(digest)
        try:
            identity = _write(temporary, raw)
            try:
                os.rename(temporary, path)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                os.rename(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        self._remember(digest, identity)

    def remove_stale_temporaries(self) -> None:
        """Remove what writers that no longer live left half-written."""
        with contextlib.suppress(OSError), os.scandir(f"{self._base}/{TEMPORARY}") as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE_TEMPORARY:
                        os.unlink(entry.path)

    def _drop(self, digest: Digest, why: str) -> CorruptError:
        self._forget(digest)
        path = self.file(digest)
        with contextlib.suppress(OSError):
            os.unlink(path)
        return CorruptError(f"cached chunk {path} {why}; removed, it will be fetched again")

    def _remember(self, digest: Digest, identity: int) -> None:
        with self._lock:
            self._verified.pop(digest, None)
            while len(self._verified) >= self._verified_max:
                del self._verified[next(iter(self._verified))]
            self._verified[digest] = identity

    def _forget(self, digest: Digest) -> None:
        with self._lock:
            self._verified.pop(digest, None)


def _statuses(base: str) -> Iterator[os.stat_result]:
    """The status of every chunk file below `base`; what goes meanwhile is left out."""
    with contextlib.suppress(FileNotFoundError), os.scandir(base) as directories:
        for directory in directories:
            if directory.name == TEMPORARY or not directory.is_dir(follow_symlinks=False):
                continue
            with contextlib.suppress(FileNotFoundError), os.scandir(directory.path) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        yield entry.stat(follow_symlinks=False)


def _identity(status: os.stat_result) -> int:
    return hash((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))


def _read(descriptor: int, size: int) -> bytes:
    """`size` bytes, fewer where the file ends earlier."""
    raw = os.read(descriptor, size)
    while len(raw) < size:
        more = os.read(descriptor, size - len(raw))
        if not more:
            break
        raw += more
    return raw


def _write(path: str, raw: bytes) -> int:
    """Write a new file and return its identity."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        descriptor = os.open(path, flags, 0o600)
    try:
        view = memoryview(raw)
        while view:
            view = view[os.write(descriptor, view) :]
        return _identity(os.fstat(descriptor))
    finally:
        os.close(descriptor)
