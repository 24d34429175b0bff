"""How far the kernel reads ahead while an image starts.

A page fault in a mapped file makes the kernel read as much around it as its read-ahead is long (``do_sync_mmap_readahead``):
with 1 MiB a start of Python with NumPy asks for 34 MB of files, with 32 KiB for 20 MB (docs/decisions/read-ahead.md). Once data
is local, long reads are what is fast. So a freshly pulled layer begins with little, and gets all when its start is over: a
while after its first read, or as soon as somebody reads it from front to back.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from snapshotter.chunkstore.base import AtHand, ChunkRef, ChunkStore
from snapshotter.chunkstore.foreseen import GivesOn
from snapshotter.format.digest import Digest
from snapshotter.mount import mounting

READ_AHEAD = 16 << 10
"""Bytes, where nothing is known of the start."""

READ_AHEAD_WITH_PROFILE = mounting.PAGE
"""Bytes, where the start was recorded, which is done with as much: what lies beside is not in the profile."""

SECONDS = 15.0
"""How long a start takes at most, from the first read on."""


class StartWindow:
    """Holds the read-ahead of the mount on `mountpoint` down until its start is over."""

    def __init__(self, mountpoint: Path, *, profile: bool, seconds: float = SECONDS) -> None:
        """`profile`: whether the start has been recorded."""
        self._mountpoint = mountpoint
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self.end)
        self._timer.daemon = True
        self._begun = self._ended = False
        mounting.set_read_ahead(mountpoint, READ_AHEAD_WITH_PROFILE if profile else READ_AHEAD)

    def begin(self) -> None:
        """Something is read. All but the first call cost nothing."""
        if self._begun:
            return
        with self._lock:
            if not self._begun:
                self._begun = True
                self._timer.start()

    def end(self) -> None:
        """The start is over. All but the first call cost nothing."""
        if self._ended:
            return
        with self._lock:
            if self._ended:
                return
            self._ended = self._begun = True
        self._timer.cancel()
        mounting.raise_read_ahead(self._mountpoint)


class Started(GivesOn):
    """Tells `window` of the first read of `inner`; what is foreseen begins no start."""

    def __init__(self, inner: ChunkStore, window: StartWindow) -> None:
        self._inner = inner
        self._near: AtHand | None = inner if isinstance(inner, AtHand) else None  # asking that takes longer than the answer
        self._window = window

    @property
    def name(self) -> str:
        """See `ChunkStore`, and so below."""
        return self._inner.name

    def get(self, wanted: Sequence[ChunkRef]) -> list[bytes]:
        self._window.begin()
        return self._inner.get(wanted)

    def at_hand(self, wanted: Sequence[ChunkRef]) -> list[bytes] | None:
        return None if self._near is None else self._near.at_hand(wanted)

    def local(self, wanted: Sequence[ChunkRef]) -> list[bytes] | None:
        self._window.begin()
        return None if self._near is None else self._near.local(wanted)

    def part(self, ref: ChunkRef, offset: int, length: int) -> bytes | None:
        return None if self._near is None else self._near.part(ref, offset, length)

    def has(self, digest: Digest) -> bool:
        return self._inner.has(digest)

    def close(self) -> None:
        self._inner.close()
