"""Records which chunks are read, in the order in which each is first asked for: the raw material of start profiles."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from snapshotter.chunkstore.base import ChunkRef, ChunkStore
from snapshotter.chunkstore.foreseen import GivesOn
from snapshotter.format.digest import Digest

RECORDED_MAX = 1 << 15
"""Chunks after which recording ends: 2 GiB of average ones is no start any more."""

log = logging.getLogger(__name__)


class Recorded(GivesOn):
    """Writes a line (nanoseconds on the system-wide monotonic clock, digest) to the file `path` for every chunk that is read
    for the first time. What cannot be written is lost, and no read fails of it. What is foreseen is not recorded."""

    def __init__(
        self, inner: ChunkStore, path: Path, *, seconds: float = math.inf, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        """`seconds` after the first read recording ends."""
        self._inner = inner
        self._path = path
        self._clock = clock
        self._longest = seconds * 1e9
        self._since: int | None = None
        self._seen: set[Digest] = set()
        self._lock = threading.Lock()
        self._fd: int | None = None
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            log.warning("reads cannot be recorded in %s: %s", path, error)

    @property
    def name(self) -> str:
        return self._inner.name

    def get(self, wanted: Sequence[ChunkRef]) -> list[bytes]:
        with self._lock:
            fresh = [ref.digest for ref in wanted if ref.digest not in self._seen and not ref.compressed]
            if fresh and self._fd is not None and len(self._seen) < RECORDED_MAX:
                now = self._clock()
                if self._since is None:
                    self._since = now
                if now - self._since > self._longest:
                    self._stop()
                    return self._inner.get(wanted)
                self._seen.update(fresh)
                with contextlib.suppress(OSError):
                    os.write(self._fd, b"".join(b"%d %s\n" % (now, digest.hex().encode()) for digest in fresh))
        return self._inner.get(wanted)

    def has(self, digest: Digest) -> bool:
        return self._inner.has(digest)

    def close(self) -> None:
        with self._lock:
            self._stop()
        self._inner.close()

    def _stop(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
        self._fd = None


def read_records(paths: Iterable[Path]) -> list[Digest]:
    """The chunks that were recorded in `paths` (a file a layer), each once, in the order of the first reads.

    Lines that are none (the last one of a process that was killed) are left out.
    """
    lines: list[tuple[int, bytes]] = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            for line in path.read_bytes().splitlines():
                when, _, name = line.partition(b" ")
                if when.isdigit() and len(name) == 64:
                    with contextlib.suppress(ValueError):
                        lines.append((int(when), bytes.fromhex(name.decode("ascii", "replace"))))
    lines.sort(key=lambda line: line[0])
    return [Digest(name) for name in dict.fromkeys(name for _, name in lines)]
