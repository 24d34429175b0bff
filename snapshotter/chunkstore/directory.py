"""The cache's files: ``<root>/chunks/<2 hex>/<64 hex>``, one raw chunk each, mode 0600.

A file is published by temporary name and rename, without fsync: at one chunk per 64 KiB an fsync each would bring a disk
that writes hundreds of MB/s down to a few, and it is not needed, because no byte is believed that has not been checked. A
file that a power cut left torn is found when it is read, dropped and fetched again.

**Sealed** (`sealing`, see `format.fsverity`), a file is checked by the kernel, page by page, whenever bytes come from the
disk. What remains to be seen, once, is that it is sealed with the digest that the image names for the chunk.

**Otherwise** a file is hashed when it is first read, and again whenever the kernel has to ask the disk for any of it: as long
as all of it is in the page cache it is what was hashed. "First" is remembered per process in a bounded map from digest to
the file's identity (inode, size, ctime); a file that was replaced, cut or written to since is hashed again, and so is one
that fell out of the map. What this or another process has hashed since the machine started has a mark (`marks`), by which it is
checked in a fifth of the time.

Several processes may use one directory: names are content, so whoever renames last changes nothing.

A file's times tell all processes how it was used (`reserve` goes by them). Its **mtime** is when a container's read wanted it
last, 1970 if none has; its **atime** when it was written or read. Both are set explicitly, and renewed at intervals only: where
a mount has noatime the kernel does not keep the atime, and elsewhere any backup changes it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from snapshotter.chunkstore import chunkfiles, pagecache
from snapshotter.chunkstore.marks import Marks
from snapshotter.chunkstore.pagecache import PageCacheReader
from snapshotter.chunkstore.publish import TEMPORARY
from snapshotter.chunkstore.reserve import is_recent
from snapshotter.errors import CorruptError
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.model import CHUNK_MAX

VERIFIED_MAX = 32768
"""Digests that are remembered as checked: 2 GiB of average chunks, about 7 MB of memory. Checking again costs 40 µs."""

AT_HAND_MAX = 256 << 10
"""Bytes of the longest chunk that `ChunkDirectory.at_hand` gives: hashing it takes 0.15 ms."""

PART_MAX = 1 << 20
"""Bytes of the longest chunk of which `ChunkDirectory.part` gives some, the longest that is made (`build.chunk.Cutting`).
Reading all of it and comparing its mark takes 0.2 ms."""

TOUCH_INTERVAL = 600.0
"""Seconds after which a read renews a file's times: at this interval it costs nothing, and the order of eviction is right to
ten minutes."""

_BLOCK = 256 << 10

STALE_TEMPORARY = 3600.0
"""Age in seconds at which a temporary file belongs to nobody any more: writing one takes milliseconds."""


_Identity = int

VerityOf = Callable[[Digest], bytes | None]
"""The fs-verity digest that an image names for a chunk, None where it names none (`format.rootfs.Rootfs.verity`)."""


class Sealing(Protocol):
    """The kernel's fs-verity (module `format.fsverity`)."""

    def enable(self, descriptor: int, /) -> None:
        """Seal the file, open for reading only."""
        ...

    def measure(self, descriptor: int, /) -> bytes | None:
        """The digest that a sealed file has, None for one that is not."""
        ...


class Usage(NamedTuple):
    """Bytes that chunks take on the disk, how many chunks, and the bytes of those that containers have read recently."""

    used: int
    chunks: int
    recent: int


class ChunkDirectory:
    """Chunk files by digest. `load` verifies; `store` trusts its caller to have done so."""

    def __init__(
        self,
        root: Path,
        *,
        sealing: Sealing | None = None,
        verified_max: int = VERIFIED_MAX,
        marks: Marks | None = None,
    ) -> None:
        """`sealing`: have the kernel check the files; its file system must be able to. `marks`: check those more quickly
        that this cache has hashed before; what the kernel checks needs none."""
        self.path = root / "chunks"
        self._base = os.fspath(self.path)
        self._sealing = sealing
        self._marks = marks if sealing is None else None
        self._verified: dict[Digest, _Identity] = {}
        self._sealed: set[Digest] = set()
        self._verified_max = verified_max
        self._lock = threading.Lock()
        self._resident = PageCacheReader(AT_HAND_MAX)
        self._long = PageCacheReader(PART_MAX)  # its memory is that of the one thread that asks for parts

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

    def usage(self) -> Usage:
        """What all chunks take on the disk; 0.1 s for 100,000."""
        used = count = recent = 0
        now = time.time()
        with contextlib.suppress(FileNotFoundError):
            for _, status in chunkfiles.files(self._base):
                size = status.st_blocks * 512
                used += size
                count += 1
                recent += size if is_recent(status.st_mtime, now) else 0
        return Usage(used, count, recent)

    def load(self, digest: Digest, verity_of: VerityOf | None = None) -> bytes | None:
        """The chunk's raw bytes, None if there is no file. `verity_of` saves the hashing of a sealed file.

        Raises:
            CorruptError: the file held something else, or the disk or fs-verity refused it; it has been removed.
            OSError: the file cannot be read.
        """
        descriptor = self._open(digest)
        if descriptor is None:
            return None
        try:
            status = self._status(digest, descriptor)
            return self._read(digest, descriptor, self._renew(digest, descriptor, status), verity_of)
        except OSError as error:
            if error.errno == errno.EIO:
                raise self._drop(digest, f"cannot be read, or fails fs-verity ({error.strerror})") from None
            raise
        finally:
            os.close(descriptor)

    def at_hand(self, digest: Digest) -> bytes | None:
        """What `load` gives, if it asks no disk and takes less than a millisecond; else None. Never raises."""
        try:
            descriptor = os.open(self.file(digest), chunkfiles.READING)
        except OSError:
            return None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= AT_HAND_MAX:
                return None
            identity = _identity(self._renew(digest, descriptor, status))
            if self._verified.get(digest) == identity:
                raw = self._resident.read_resident(descriptor, status.st_size)
            elif self._sealing is not None:
                return None  # it has to be seen that it is sealed, which is the business of `load`
            else:
                # What is hashed now may as well have come from the disk this moment: nobody has to ask where it was.
                raw = self._resident.read(descriptor, status.st_size)
                if raw is None or not self._matches(digest, descriptor, raw):
                    return None
                self._remember(digest, identity, sealed=False)
            return raw
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def part(self, digest: Digest, offset: int, length: int) -> bytes | None:
        """`length` bytes from `offset` on of a chunk of up to `PART_MAX` bytes, as `load` gives it, if that asks no disk
        and takes less than a millisecond: what has no mark yet is left to `load`. Else None. Never raises."""
        try:
            descriptor = os.open(self.file(digest), chunkfiles.READING)
        except OSError:
            return None
        try:
            status = os.fstat(descriptor)
            size = status.st_size
            if not stat.S_ISREG(status.st_mode) or not offset + length <= size <= PART_MAX:
                return None
            identity = _identity(self._renew(digest, descriptor, status))
            if self._verified.get(digest) == identity:
                return self._long.part_resident(descriptor, size, offset, length)
            if self._marks is None:
                return None
            raw = self._long.view(descriptor, size)
            if raw is None or not self._marks.fits(digest, descriptor, raw):
                return None
            self._remember(digest, identity, sealed=False)
            return bytes(raw[offset : offset + length])
        except OSError:
            return None
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def opened(self, digest: Digest) -> Iterator[tuple[int, int] | None]:
        """The chunk's file for as long as the block lasts: a descriptor at its start and its size, once it has been seen that
        it holds the chunk; None if there is none. For who sends a file on without having it in memory, which is no read of a
        container.

        Raises:
            CorruptError, OSError: as `load`.
        """
        descriptor = self._open(digest)
        if descriptor is None:
            yield None
            return
        try:
            status = self._status(digest, descriptor)
            self._check(digest, descriptor, status)
            yield descriptor, status.st_size
        finally:
            os.close(descriptor)

    def _open(self, digest: Digest) -> int | None:
        """A descriptor of the chunk's file, whatever that is; None if there is none."""
        try:
            return os.open(self.file(digest), chunkfiles.READING)
        except FileNotFoundError:
            self._forget(digest)
            return None

    def _status(self, digest: Digest, descriptor: int) -> os.stat_result:
        """Of what was opened, if it can be a chunk.

        Raises:
            CorruptError: it cannot; it has been removed.
        """
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= CHUNK_MAX:
            raise self._drop(digest, f"is no file of 1 to {CHUNK_MAX} bytes")
        return status

    def _check(self, digest: Digest, descriptor: int, status: os.stat_result) -> None:
        """As `_read`, without having all of the file in memory."""
        identity = _identity(status)
        if self._verified.get(digest) == identity and (
            digest in self._sealed
            or pagecache.resident_pages(descriptor, status.st_size) == pagecache.page_count(status.st_size)
        ):
            return
        hashed = hashlib.sha256()
        try:
            while block := os.read(descriptor, _BLOCK):
                hashed.update(block)
        except OSError as error:
            if error.errno == errno.EIO:
                raise self._drop(digest, f"cannot be read, or fails fs-verity ({error.strerror})") from None
            raise
        if hashed.digest() != digest:
            raise self._drop(digest, "does not match its name")
        os.lseek(descriptor, 0, os.SEEK_SET)
        sealed = self._sealing is not None and self._sealing.measure(descriptor) is not None
        self._remember(digest, identity, sealed=sealed)

    def was_read(self, digest: Digest) -> None:
        """A container has read the chunk, but not from here. Nothing where there is no file. Never raises."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self.file(digest), chunkfiles.READING)
            try:
                self._renew(digest, descriptor, os.fstat(descriptor))
            finally:
                os.close(descriptor)

    def _renew(self, digest: Digest, descriptor: int, status: os.stat_result) -> os.stat_result:
        """Note that a container reads the file, if that is not noted; the status that it has then.

        Before it is read: what is written to it from here on shows in its ctime.
        """
        if 0 <= time.time() - status.st_mtime < TOUCH_INTERVAL:
            return status
        try:
            now = time.time_ns()
            os.utime(descriptor, ns=(now, now))
            renewed = os.fstat(descriptor)
        except OSError:
            return status
        if self._verified.get(digest) == _identity(status):
            self._remember(digest, _identity(renewed), sealed=digest in self._sealed)
        return renewed

    def _read(self, digest: Digest, descriptor: int, status: os.stat_result, verity_of: VerityOf | None) -> bytes:
        size = status.st_size
        identity = _identity(status)
        if self._verified.get(digest) == identity:
            if digest in self._sealed:
                raw = chunkfiles.read(descriptor, size)
                if len(raw) != size:
                    raise self._drop(digest, "was cut while it was read")
                return raw
            cached = self._resident.read_resident(descriptor, size)
            if cached is not None:
                return cached
        measured = None if self._sealing is None else self._sealing.measure(descriptor)
        raw = chunkfiles.read(descriptor, size)
        # An image that names a wrong digest must not spoil the chunk for others: the chunk's name has the last word.
        is_named = measured is not None and verity_of is not None and measured == verity_of(digest)
        if len(raw) != size or not (is_named or self._matches(digest, descriptor, raw)):
            raise self._drop(digest, "does not match its name")
        if self._sealing is not None and measured is None:
            # kept by an earlier daemon that did not seal
            self._sealing.enable(descriptor)
            identity = _identity(os.fstat(descriptor))
        self._remember(digest, identity, sealed=self._sealing is not None)
        return raw

    def _matches(self, digest: Digest, descriptor: int, raw: bytes) -> bool:
        """Whether `raw`, what the file holds, is the chunk.

        Where the file is marked now, its ctime is another than that of the identity which is remembered: so it is checked once
        more, by the mark. To ask for its identity afterwards would let pass what was written to it meanwhile.
        """
        if self._marks is not None and self._marks.fits(digest, descriptor, raw):
            return True
        if sha256(raw) != digest:
            return False
        if self._marks is not None:
            self._marks.set(digest, descriptor, raw)
        return True

    def store(self, digest: Digest, raw: bytes, *, wanted: bool = True) -> None:
        """Publish the chunk. `wanted`: a container reads it now; else it comes ahead of readers.

        Raises:
            OSError: it cannot be written; nothing is left behind.
        """
        temporary = f"{self._base}/{TEMPORARY}/{os.getpid()}-{secrets.token_hex(8)}"
        path = self.file(digest)
        try:
            chunkfiles.write(temporary, raw)
            # The descriptor for writing must be closed before sealing; this one outlives the rename, which sets the ctime.
            descriptor = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if self._sealing is not None:
                    self._sealing.enable(descriptor)
                elif self._marks is not None:
                    self._marks.set(digest, descriptor, raw)
                try:
                    os.rename(temporary, path)
                except FileNotFoundError:
                    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                    os.rename(temporary, path)
                if not wanted:  # under its name, since a temporary file from 1970 would be taken for that of a dead writer
                    os.utime(descriptor, ns=(time.time_ns(), 0))
                identity = _identity(os.fstat(descriptor))
            finally:
                os.close(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        self._remember(digest, identity, sealed=self._sealing is not None)

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

    def _remember(self, digest: Digest, identity: _Identity, *, sealed: bool) -> None:
        with self._lock:
            self._verified.pop(digest, None)
            while len(self._verified) >= self._verified_max:
                oldest = next(iter(self._verified))
                del self._verified[oldest]
                self._sealed.discard(oldest)
            self._verified[digest] = identity
            if sealed:
                self._sealed.add(digest)
            else:
                self._sealed.discard(digest)

    def _forget(self, digest: Digest) -> None:
        with self._lock:
            self._verified.pop(digest, None)
            self._sealed.discard(digest)


def _identity(status: os.stat_result) -> _Identity:
    # The ctime cannot be set back, the mtime can.
    return hash((status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns))
