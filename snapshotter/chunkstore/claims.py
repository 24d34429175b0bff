"""Which process of the node is fetching a chunk, so that no other one fetches it too.

A claim is a lock on one byte of a file beside the cache, at a place that the chunk's digest gives. It is an open file
description lock (fcntl(2), F_OFD_SETLK): taking or giving one up is one system call of about a microsecond, no file is made,
and the kernel gives up those of a process that dies. Two digests whose first 62 bits agree would share a claim, which costs
one of them a wait. Within a process `flying` knows what is on its way; claims are between processes.

A claim is held until the chunk is on disk, where the others look for it, or until it is known not to come. Who waits for that
shares the lock on one more byte, by which whoever holds back what it has (`writebehind`) sees that somebody waits.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from snapshotter.format.digest import Digest

_FLOCK = struct.Struct("hhqqi")  # struct flock of the 64-bit ABI: type, whence, start, length, process


_AWAITING = 1 << 62
"""The byte of those who wait, behind all claims."""


class Claimed(Protocol):
    """Claims on chunks."""

    def take(self, digest: Digest) -> bool:
        """Claim a chunk; False if another process has it claimed. Claiming again what this process has is True."""
        ...

    def holds(self, digest: Digest) -> bool:
        """Whether this process has claimed the chunk."""
        ...

    def release(self, digests: Iterable[Digest]) -> None:
        """Give claims up; those that this process does not have are left alone."""
        ...

    def awaiting(self) -> contextlib.AbstractContextManager[None]:
        """While the block lasts, this process waits for what others have claimed to be on disk."""
        ...

    def awaited(self) -> bool:
        """Whether another process waits so."""
        ...


class Claims:
    """Claims of this process on the chunks of the cache below `root`."""

    def __init__(self, root: Path) -> None:
        self._path = root / "chunks" / ".claims"
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._held: set[Digest] = set()
        self._awaiting = 0

    def take(self, digest: Digest) -> bool:
        """See `Claimed`. Where locks cannot be had at all, every claim is granted: fetching twice is better than not at all."""
        with self._lock:
            if digest in self._held:
                return True
            try:
                fcntl.fcntl(self._opened(), fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK, _place(digest)))
            except BlockingIOError:
                return False
            except OSError:
                return True
            self._held.add(digest)
            return True

    def holds(self, digest: Digest) -> bool:
        """See `Claimed`."""
        with self._lock:
            return digest in self._held

    def release(self, digests: Iterable[Digest]) -> None:
        """See `Claimed`."""
        with self._lock:
            for digest in digests:
                if digest in self._held:
                    self._held.discard(digest)
                    if self._fd is not None:
                        with contextlib.suppress(OSError):
                            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, _place(digest)))

    @contextlib.contextmanager
    def awaiting(self) -> Iterator[None]:
        """See `Claimed`."""
        self._await(1)
        try:
            yield
        finally:
            self._await(-1)

    def awaited(self) -> bool:
        """See `Claimed`. Where locks cannot be had at all, nobody does."""
        with self._lock, contextlib.suppress(OSError):
            if self._fd is not None:
                answer = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, _AWAITING))
                return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
        return False

    def _await(self, more: int) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._awaiting += more
            if self._awaiting:
                fcntl.fcntl(self._opened(), fcntl.F_OFD_SETLK, _flock(fcntl.F_RDLCK, _AWAITING))
            elif self._fd is not None:
                fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, _AWAITING))

    def close(self) -> None:
        """Give everything up. Calling it again does nothing."""
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
            self._fd = None
            self._held.clear()

    def _opened(self) -> int:
        """The file. The lock is held by the caller."""
        if self._fd is None:
            os.makedirs(self._path.parent, mode=0o700, exist_ok=True)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        return self._fd


class NoClaims:
    """For a process that is alone."""

    def take(self, digest: Digest) -> bool:
        """See `Claimed`."""
        return True

    def holds(self, digest: Digest) -> bool:
        """See `Claimed`."""
        return False

    def release(self, digests: Iterable[Digest]) -> None:
        """See `Claimed`."""

    def awaiting(self) -> contextlib.AbstractContextManager[None]:
        """See `Claimed`."""
        return contextlib.nullcontext()

    def awaited(self) -> bool:
        """See `Claimed`."""
        return False


def _place(digest: Digest) -> int:
    return int.from_bytes(digest[:8], "big") >> 2


def _flock(kind: int, place: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, place, 1, 0)
