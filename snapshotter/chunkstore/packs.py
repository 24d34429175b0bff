"""Chunks out of packs: few range requests, several at a time, and what comes along goes to the cache.

What is on its way is known per chunk (`_flying`), read-ahead included, so that a read of something that another read is
already bringing waits for it instead of asking twice. Chunks that were asked for go up as they are, for `verify` to check;
all others are checked here before they are kept.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from snapshotter.chunkstore import planner
from snapshotter.chunkstore.base import BlobReader, ChunkCorruptError, ChunkMissingError, ChunkRef, SourceUnavailableError
from snapshotter.chunkstore.local import LocalChunks
from snapshotter.chunkstore.packmap import PackMap
from snapshotter.chunkstore.planner import Limits, Plan, Range, Stream
from snapshotter.chunkstore.pool import BESIDE, FetchPool
from snapshotter.chunkstore.sources import translate
from snapshotter.chunkstore.stats import Count, Stats
from snapshotter.errors import CorruptError, PuzzlefsError
from snapshotter.format.compression import decode_chunk
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.format.pack import PackEntry

log = logging.getLogger(__name__)

TIMEOUT = 60.0
"""Seconds to wait for chunks that another thread is bringing. The reader bounds the requests themselves."""

Located: TypeAlias = dict[Digest, tuple[PackMap, PackEntry]]
"""Where wanted chunks are."""


@dataclass(frozen=True, slots=True)
class _Request:
    """One range of a pack, and the promise of every chunk in it. Chunks not in `wanted` are checked before they are kept."""

    pack: PackMap
    found: Range
    futures: Mapping[Digest, Future[bytes]]
    wanted: frozenset[Digest]


class PackStore:
    """The chunks of `packs`, read from `reader`.

    With `local` (the cache) reads bring along what lies beside and ahead of them as `limits` say, and what is found there
    is not fetched; without it nothing but the wanted chunks is moved. The pool is shared and belongs to whoever made it;
    without one, the thread that asks makes all requests itself, one after another, which is right for local files.
    """

    def __init__(
        self,
        packs: Sequence[PackMap],
        reader: BlobReader,
        *,
        stats: Stats,
        pool: FetchPool | None = None,
        local: LocalChunks | None = None,
        limits: Limits | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self._packs = tuple(packs)
        self._reader = reader
        self._pool = pool
        self._stats = stats
        self._local = local
        self._limits = limits or Limits()
        self._timeout = timeout
        self._lock = threading.Lock()
        self._flying: dict[Digest, Future[bytes]] = {}
        self._streams: dict[Digest, tuple[Stream, ...]] = {}

    @property
    def name(self) -> str:
        return f"packs({self._reader.name})"

    def get(self, wanted: Sequence[ChunkRef]) -> list[bytes]:
        located = self._locate(wanted)
        with self._lock:
            coming = {digest: self._flying[digest] for digest in located if digest in self._flying}
        # Looked up after `_flying`: what has just landed is in the cache by now, since it is put there first.
        kept = self._peek([digest for digest in located if digest not in coming])
        requests = self._begin(located, kept, coming)
        inline = requests
        if self._pool is not None:
            inline = requests[:1]
            for request in requests[1:]:
                self._pool.run_now(partial(self._fetch, request))
        for request in inline:
            self._fetch(request)
        got = kept | self._collect(coming)
        return [got[ref.digest] for ref in wanted]

    def has(self, digest: Digest) -> bool:
        return False

    def close(self) -> None:
        """Nothing is held: pool, packs and reader belong to whoever made them."""

    def _locate(self, wanted: Sequence[ChunkRef]) -> Located:
        """Where each wanted chunk is. An index that cannot be had matters only if the others lack a chunk."""
        located: Located = {}
        failure: PuzzlefsError | None = None
        rest = list(dict.fromkeys(ref.digest for ref in wanted if not ref.compressed))
        for pack in self._packs:
            if not rest:
                break
            try:
                index = pack.index()
            except PuzzlefsError as error:
                failure = failure or error
                continue
            for digest in rest:
                entry = index.find(digest)
                if entry is not None:
                    located[digest] = (pack, entry)
            rest = [digest for digest in rest if digest not in located]
        if rest and failure is not None:
            raise translate(failure, rest, self._reader.name, f"chunk {to_text(rest[0])}") from failure
        missing = rest + [ref.digest for ref in wanted if ref.compressed]
        if missing:
            raise ChunkMissingError(
                f"chunk {to_text(missing[0])} is in none of {len(self._packs)} packs of {self.name}", missing
            )
        return located

    def _peek(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        if self._local is None:
            return {}
        found = ((digest, self._local.peek(digest)) for digest in digests)
        return {digest: raw for digest, raw in found if raw is not None}

    def _begin(self, located: Located, kept: Mapping[Digest, bytes], coming: dict[Digest, Future[bytes]]) -> list[_Request]:
        """Plan, enter every chunk of the plan into `_flying`, and start reading ahead.

        Returns the requests that the caller must see to, and adds to `coming` what it must wait for.
        """
        by_pack: dict[PackMap, list[PackEntry]] = {}
        for digest, (pack, entry) in located.items():
            if digest not in kept:
                by_pack.setdefault(pack, []).append(entry)
        if not by_pack:
            return []
        wanted = frozenset(located)
        now: list[_Request] = []
        beside: list[_Request] = []
        pool = self._pool if self._local is not None else None
        slots = pool.take_beside(BESIDE) if pool is not None else 0
        try:
            with self._lock:
                plans: list[tuple[PackMap, Plan]] = []
                for pack, entries in by_pack.items():
                    plans.append((pack, self._plan(pack, entries, coming, slots - sum(len(plan.beside) for _, plan in plans))))
                # Only now that nothing can fail any more: whoever finds a promise in `_flying` waits for it.
                for pack, plan in plans:
                    now += [_Request(pack, found, self._enter(found), wanted) for found in plan.now]
                    beside += [_Request(pack, found, self._enter(found), frozenset()) for found in plan.beside]
                for entries in by_pack.values():
                    coming |= {entry.digest: self._flying[entry.digest] for entry in entries if entry.digest not in coming}
        finally:
            if pool is not None:
                pool.give_beside(slots - len(beside))
        if pool is not None:
            for request in beside:
                pool.run_beside(partial(self._fetch, request))
        return now

    def _plan(self, pack: PackMap, entries: Sequence[PackEntry], coming: Mapping[Digest, object], slots: int) -> Plan:
        new = [entry for entry in entries if entry.digest not in coming and entry.digest not in self._flying]
        local = self._local
        if local is None:
            return planner.exactly(new, self._limits)

        def here(entry: PackEntry) -> bool:
            return entry.digest in self._flying or local.has(entry.digest)

        plan = planner.plan(entries, new, self._streams.get(pack.digest, ()), pack.between, here, slots, self._limits)
        self._streams[pack.digest] = plan.streams
        return plan

    def _enter(self, found: Range) -> dict[Digest, Future[bytes]]:
        futures: dict[Digest, Future[bytes]] = {entry.digest: Future() for entry in found.entries}
        self._flying.update(futures)
        return futures

    def _fetch(self, request: _Request) -> None:
        """Make one request and settle the promise of every chunk in it. Never raises."""
        found = request.found
        where = f"pack {to_text(request.pack.digest)} of {self._reader.name}"
        try:
            try:
                self._stats.add(Count.REQUESTS, source=self._reader.name)
                data = self._reader.read_range(request.pack.digest, found.offset, found.length)
                self._stats.add(Count.BYTES, len(data), source=self._reader.name)
                if len(data) != found.length:
                    raise CorruptError(f"{len(data)} bytes came instead of {found.length}")
            except PuzzlefsError as error:
                what = f"bytes {found.offset}+{found.length}"
                for digest, future in request.futures.items():
                    self._settle(digest, future, translate(error, [digest], where, what))
                return
            # Those that somebody waits for come first.
            for entry in sorted(found.entries, key=lambda entry: entry.digest not in request.wanted):
                begin = entry.offset - found.offset
                result = _decode(entry, data[begin : begin + entry.stored_length], where)
                if entry.digest not in request.wanted:
                    result = self._keep(entry, result, where)
                self._settle(entry.digest, request.futures[entry.digest], result)
        except Exception as error:
            log.exception("reading %s failed", where)
            for digest, future in request.futures.items():
                self._settle(digest, future, SourceUnavailableError(f"reading {where} failed: {error}", retryable=False))

    def _keep(self, entry: PackEntry, raw: bytes | PuzzlefsError, where: str) -> bytes | PuzzlefsError:
        """Check and keep a chunk that was not asked for."""
        if isinstance(raw, bytes) and sha256(raw) != entry.digest:
            raw = ChunkCorruptError(entry.digest, where, "its sha256 is another")
        if isinstance(raw, bytes):
            if self._local is not None:
                self._local.put(entry.digest, raw)
            self._stats.add(Count.AHEAD, source=self._reader.name)
        else:
            log.warning("read ahead: %s", raw)
        return raw

    def _settle(self, digest: Digest, future: Future[bytes], result: bytes | PuzzlefsError) -> None:
        with self._lock:
            if self._flying.get(digest) is future:
                del self._flying[digest]
        if future.done():
            return
        if isinstance(result, bytes):
            future.set_result(result)
        else:
            future.set_exception(result)

    def _collect(self, coming: Mapping[Digest, Future[bytes]]) -> dict[Digest, bytes]:
        """Wait for all of `coming`. If some fail, keep the others in the cache, so that they need not be fetched again."""
        got: dict[Digest, bytes] = {}
        errors: list[PuzzlefsError] = []
        for digest, future in coming.items():
            try:
                got[digest] = future.result(self._timeout)
            except TimeoutError:
                message = f"chunk {to_text(digest)}: waited {self._timeout:g} s for {self.name}"
                errors.append(SourceUnavailableError(message, retryable=False))
                break
            except PuzzlefsError as error:
                errors.append(error)
        if not errors:
            return got
        if self._local is not None:
            for digest, raw in got.items():
                if sha256(raw) == digest:
                    self._local.put(digest, raw)
        raise _worst(errors)


def _worst(errors: Sequence[PuzzlefsError]) -> PuzzlefsError:
    """The one of `errors` to raise: what may work later before what is broken before what is not there."""
    for category in (SourceUnavailableError, ChunkCorruptError):
        for found in errors:
            if isinstance(found, category):
                return found
    missing = [digest for found in errors if isinstance(found, ChunkMissingError) for digest in found.digests]
    return ChunkMissingError(str(errors[0]), missing)


def _decode(entry: PackEntry, stored: bytes, where: str) -> bytes | PuzzlefsError:
    try:
        return decode_chunk(entry.codec, stored, entry.raw_length)
    except CorruptError as error:
        return ChunkCorruptError(entry.digest, where, str(error))
