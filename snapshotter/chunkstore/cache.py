"""The node's cache of verified chunks, and the member of the chain that asks it first.

`ChunkCache` is the cache itself: one per process, over a directory that processes share. `CachedStore` is the member: one
per chain, in front of whatever fetches. The cache only ever makes things faster: where its disk is full, broken or gone,
reads go on from what is fetched.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from snapshotter.chunkstore.base import ChunkRef, ChunkStore
from snapshotter.chunkstore.claims import Claimed, NoClaims
from snapshotter.chunkstore.directory import ChunkDirectory, Sealing, VerityOf
from snapshotter.chunkstore.eviction import Evictor
from snapshotter.chunkstore.marks import Marks
from snapshotter.chunkstore.reserve import Cap
from snapshotter.chunkstore.stats import Count, Stats
from snapshotter.chunkstore.writebehind import QUEUE_BYTES, WriteBehind
from snapshotter.errors import CorruptError
from snapshotter.format.digest import Digest

log = logging.getLogger(__name__)

PAUSE = 10.0
"""Seconds without writing after a write has failed: a full disk is asked again now and then, not for every chunk."""

UNREAD_MAX = 32768
"""Chunks that came unasked which a process remembers as such, 4 MB of memory. Of older ones, a read that is answered from
memory is not noted; the next one from the file is."""


class ChunkCache:
    """Verified raw chunks under `root`, written beside the reads that bring them (see `local.LocalChunks`).

    `cap` bounds what the directory takes on disk, None leaves it alone. `sealing` has the kernel check the files. `claims`
    are given up when a chunk has been written, or will not be. Compressed references (names of stored bytes) are never kept: a
    file's name must be the digest of its content.
    """

    def __init__(
        self,
        root: Path,
        *,
        stats: Stats,
        cap: Cap | None = None,
        queue_bytes: int = QUEUE_BYTES,
        sealing: Sealing | None = None,
        claims: Claimed | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directory = ChunkDirectory(root, sealing=sealing, marks=Marks.of(root / "chunks") if sealing is None else None)
        self.stats = stats
        self._clock = clock
        self._claims: Claimed = claims or NoClaims()
        self._paused_until = float("-inf")
        self._writer = WriteBehind(self._store, queue_bytes, hurried=self._claims.awaited)
        self._lock = threading.Lock()
        self.directory.remove_stale_temporaries()
        self._unread: dict[Digest, None] = {}  # what this process was given unasked, until somebody reads it
        self._evictor = None if cap is None else Evictor(self.directory.path, cap, stats)
        if self._evictor is not None:
            self._evictor.start()

    @property
    def name(self) -> str:
        """For logs and errors."""
        return f"cache({self.directory.path})"

    def peek(self, digest: Digest, verity_of: VerityOf | None = None) -> bytes | None:
        """The chunk's raw bytes if they are here, verified. Never raises: what cannot be read is a miss.

        `verity_of` makes that cheaper where files are sealed (`ChunkDirectory.load`).
        """
        self._writer.busy()
        raw = self._writer.peek(digest)
        if raw is not None:
            self._read(digest)
            return raw
        self._was_unread(digest)  # `load` notes that it is read
        try:
            return self.directory.load(digest, verity_of)
        except (CorruptError, OSError) as error:
            self._missed(digest, error)
        return None

    def at_hand(self, digest: Digest) -> bytes | None:
        """What `peek` gives, if no disk has to be asked for it; else None."""
        self._writer.busy()
        raw = self._writer.peek(digest)
        if raw is not None:
            self._read(digest)
            return raw
        return self.directory.at_hand(digest)

    def part(self, digest: Digest, offset: int, length: int) -> bytes | None:
        """Bytes of what `peek` gives, if no disk has to be asked for them and the chunk is so long; else None."""
        self._writer.busy()
        raw = self._writer.peek(digest)
        if raw is not None:
            self._read(digest)
            return raw[offset : offset + length] if offset + length <= len(raw) else None
        return self.directory.part(digest, offset, length)

    @contextlib.contextmanager
    def opened(self, digest: Digest) -> Iterator[tuple[int, int] | None]:
        """The chunk's file, if it is written and right: a descriptor at its start and its size, for as long as the block lasts.
        What cannot be read is not there."""
        with contextlib.ExitStack() as stack:
            found = None
            try:
                found = stack.enter_context(self.directory.opened(digest))
            except (CorruptError, OSError) as error:
                self._missed(digest, error)
            yield found

    def _missed(self, digest: Digest, error: CorruptError | OSError) -> None:
        """Count and log why a chunk that has a file is a miss."""
        if isinstance(error, CorruptError):
            self.stats.add(Count.CACHE_CORRUPT)
            log.warning("%s", error)
        else:
            self.stats.add(Count.CACHE_READ_FAILURES)
            log.warning("cannot read cached chunk %s: %s", self.directory.file(digest), error)

    def has(self, digest: Digest) -> bool:
        """Whether the chunk is here, written or about to be."""
        return self._writer.peek(digest) is not None or self.directory.exists(digest)

    def put(self, digest: Digest, raw: bytes, *, wanted: bool = True) -> None:
        """Keep `raw`, which the caller has verified; soon, and unless the disk refuses (a warning and a counter then).

        `wanted`: somebody reads it; else it came unasked.
        """
        if wanted:
            self._read(digest)
        if self.directory.knows(digest) or self._clock() < self._paused_until:
            self._claims.release([digest])
            return
        if not wanted:
            with self._lock:
                self._unread[digest] = None
                if len(self._unread) > UNREAD_MAX:
                    del self._unread[next(iter(self._unread))]
        if not self._writer.put(digest, raw):
            self._store(digest, raw)

    def flush(self) -> None:
        """Wait until everything that was put is on disk or given up."""
        self._writer.flush()

    def close(self) -> None:
        """Write what is queued and end the background threads. Calling it again does nothing."""
        self._writer.close()
        if self._evictor is not None:
            self._evictor.close()

    def _read(self, digest: Digest) -> None:
        """Somebody reads a chunk, from memory."""
        if self._was_unread(digest):
            self.directory.was_read(digest)

    def _was_unread(self, digest: Digest) -> bool:
        if digest not in self._unread:
            return False
        with self._lock:
            self._unread.pop(digest, None)
        return True

    def _store(self, digest: Digest, raw: bytes) -> None:
        try:
            self.directory.store(digest, raw, wanted=digest not in self._unread)
            self._claims.release([digest])
        except OSError as error:
            self._claims.release([digest])
            self.stats.add(Count.CACHE_WRITE_FAILURES)
            with self._lock:
                first = self._clock() >= self._paused_until
                self._paused_until = self._clock() + PAUSE
            if first:
                log.warning(
                    "cannot write to the chunk cache %s: %s; reads go on from what is fetched, writing is tried again in %d s",
                    self.directory.path, error, PAUSE,
                )  # fmt: skip
            return
        if self._evictor is not None:
            self._evictor.added(len(raw))


class CachedStore:
    """Answers from `cache` what is there and asks `inner` once for all the rest, which it keeps.

    Closing it closes `inner`; the cache belongs to whoever made it, other chains use it too.
    """

    def __init__(self, cache: ChunkCache, inner: ChunkStore, verity_of: VerityOf | None = None) -> None:
        """`verity_of`: what the image names as the chunks' fs-verity digests."""
        self._cache = cache
        self._verity_of = verity_of
        self._inner = inner

    @property
    def name(self) -> str:
        return f"{self._cache.name} → {self._inner.name}"

    def at_hand(self, wanted: Sequence[ChunkRef]) -> list[bytes] | None:
        """See `AtHand`."""
        return self._all(wanted, self._cache.at_hand)

    def local(self, wanted: Sequence[ChunkRef]) -> list[bytes] | None:
        """See `AtHand`."""
        return self._all(wanted, self._peek)

    def part(self, ref: ChunkRef, offset: int, length: int) -> bytes | None:
        """See `AtHand`."""
        found = None if ref.compressed else self._cache.part(ref.digest, offset, length)
        if found is not None:
            self._cache.stats.add(Count.HITS)
        return found

    def get(self, wanted: Sequence[ChunkRef]) -> list[bytes]:
        found: dict[ChunkRef, bytes] = {}
        missing: list[ChunkRef] = []
        for ref in dict.fromkeys(wanted):
            raw = None if ref.compressed else self._peek(ref.digest)
            if raw is None:
                missing.append(ref)
            else:
                found[ref] = raw
        self._cache.stats.add(Count.HITS, len(found))
        if missing:
            self._cache.stats.add(Count.MISSES, len(missing))
            for ref, raw in zip(missing, self._inner.get(missing), strict=True):
                found[ref] = raw
                if not ref.compressed:
                    self._cache.put(ref.digest, raw)
        return [found[ref] for ref in wanted]

    def has(self, digest: Digest) -> bool:
        return self._cache.has(digest) or self._inner.has(digest)

    def close(self) -> None:
        self._inner.close()

    def _peek(self, digest: Digest) -> bytes | None:
        return self._cache.peek(digest, self._verity_of)

    def _all(self, wanted: Sequence[ChunkRef], read: Callable[[Digest], bytes | None]) -> list[bytes] | None:
        found = []
        for ref in wanted:
            raw = None if ref.compressed else read(ref.digest)
            if raw is None:
                return None
            found.append(raw)
        self._cache.stats.add(Count.HITS, len(found))
        return found
