"""What becomes of one request for chunks of a pack: other nodes are asked, then the place where the pack is, and each promise
is kept or broken.

Chunks that were asked for go up as they are, for `verify` to check; all others are checked here before they are kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from snapshotter.chunkstore import arrivals, planner
from snapshotter.chunkstore.base import BlobReader, ChunkCorruptError, Near, SourceUnavailableError
from snapshotter.chunkstore.flying import Flying
from snapshotter.chunkstore.link import Link
from snapshotter.chunkstore.local import LocalChunks
from snapshotter.chunkstore.packmap import PackMap
from snapshotter.chunkstore.planner import Limits, Range
from snapshotter.chunkstore.sources import translate
from snapshotter.chunkstore.stats import Count, Stats
from snapshotter.errors import CorruptError, PuzzlefsError
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.format.pack import PackEntry

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """Ranges of a pack, and the promise of every chunk in them. Chunks not in `wanted` are checked before they are kept."""

    pack: PackMap
    ranges: Sequence[Range]
    futures: Mapping[Digest, Future[bytes]]
    wanted: frozenset[Digest]


class Transfers:
    """Makes requests to `reader`, for what `near` has not. Safe to use from any thread; parameters are `packs.PackStore`'s."""

    def __init__(
        self,
        reader: BlobReader,
        near: Near | None,
        *,
        flying: Flying,
        local: LocalChunks | None,
        limits: Limits,
        link: Link,
        stats: Stats,
    ) -> None:
        self._reader = reader
        self._near = near
        self._flying = flying
        self._local = local
        self._limits = limits
        self._link = link
        self._stats = stats

    def place(self, pack: PackMap) -> str:
        """For errors."""
        return f"pack {to_text(pack.digest)} of {self._reader.name}"

    def fetch(self, request: Request) -> None:
        """Make one request and settle the promise of every chunk in it. Never raises."""
        where = self.place(request.pack)
        left = dict(request.futures)
        decoder = arrivals.Decoder(where)
        try:
            for digest, raw in self._near.find(request.pack.digest, list(left)) if self._near is not None else ():
                if digest not in request.wanted:
                    self._keep(digest, raw, where)
                self._flying.settle(digest, left.pop(digest), raw)
            for entry, stored in self._arriving(request, left):
                result = decoder.decode(entry, stored)
                if entry.digest not in request.wanted:
                    result = self._keep(entry.digest, result, where)
                self._flying.settle(entry.digest, left.pop(entry.digest), result)
            if left:
                raise CorruptError("not all came that was asked for")
        except PuzzlefsError as error:
            what = f"bytes {request.ranges[0].offset}+{request.ranges[0].length}"
            for digest, future in left.items():
                self._flying.settle(digest, future, translate(error, [digest], where, what))
        except Exception as error:
            log.exception("reading %s failed", where)
            for digest, future in left.items():
                message = f"chunk {to_text(digest)} from {where}: {error!r}"
                self._flying.settle(digest, future, SourceUnavailableError(message, retryable=False))

    def _arriving(self, request: Request, left: Collection[Digest]) -> Iterator[tuple[PackEntry, bytes]]:
        """Those chunks of a request that are `left` to be read, as they come."""
        groups: Sequence[Sequence[Range]] = [request.ranges]
        if len(left) < len(request.futures):
            entries = [entry for found in request.ranges for entry in found.entries if entry.digest in left]
            at_once = max(1, len(request.ranges))
            groups = planner.grouped(planner.coalesce(entries, self._limits), at_once, self._limits)
        for ranges in groups:
            self._stats.add(Count.REQUESTS, source=self._reader.name)
            arriving = arrivals.Arrivals(ranges)
            size = sum(found.length for found in ranges)
            began = time.monotonic()
            received = 0
            for offset, block in arrivals.read(self._reader, request.pack.digest, ranges):
                received += len(block)
                self._stats.add(Count.BYTES, len(block), source=self._reader.name)
                if received == size:
                    self._link.note(size, time.monotonic() - began)
                yield from arriving.feed(offset, block)

    def _keep(self, digest: Digest, raw: bytes | PuzzlefsError, where: str) -> bytes | PuzzlefsError:
        """Check and keep a chunk that was not asked for."""
        if isinstance(raw, bytes) and sha256(raw) != digest:
            raw = ChunkCorruptError(digest, where, "its sha256 is another")
        if isinstance(raw, bytes):
            if self._local is not None:
                self._local.put(digest, raw, wanted=False)
            self._stats.add(Count.AHEAD, source=self._reader.name)
        else:
            log.warning("read ahead: %s", raw)
        return raw
