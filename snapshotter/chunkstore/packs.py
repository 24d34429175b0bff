"""Chunks out of packs: few range requests, several at a time, and what comes along goes to the cache.

What is on its way is known per chunk (`Flying`), read-ahead included, so that a read of something that another read is
already bringing waits for it instead of asking twice; what another process is bringing is waited for in the cache (`claims`).
What a request brings is the business of `transfers`.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TypeAlias

from snapshotter.chunkstore import planner
from snapshotter.chunkstore.base import (
    BlobReader,
    ChunkCorruptError,
    ChunkMissingError,
    ChunkRef,
    Near,
    RangesReader,
    SourceUnavailableError,
)
from snapshotter.chunkstore.flying import Flying
from snapshotter.chunkstore.link import Link, risk, scaled
from snapshotter.chunkstore.local import LocalChunks
from snapshotter.chunkstore.packmap import PackMap
from snapshotter.chunkstore.planner import Limits, Plan, Range, Stream
from snapshotter.chunkstore.pool import BESIDE, FetchPool
from snapshotter.chunkstore.sources import translate
from snapshotter.chunkstore.stats import Stats
from snapshotter.chunkstore.transfers import Request, Transfers
from snapshotter.errors import PuzzlefsError
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.format.pack import PackEntry
from snapshotter.registry.deadline import remaining

TIMEOUT = 60.0
"""Seconds to wait for chunks that another thread is bringing. The reader bounds the requests themselves."""

BULK = 4 << 20
"""Stored bytes that a reader has read in order when it is taken to read everything. A start of Python with NumPy reads 1.8 MB
of one file so, at most."""

LANES = 2
"""Requests of `PackStore.bring` that are under way at once: one travels while the other is decoded."""

OTHERS_MAX = 3
"""How often a read waits for what others bring and asks again if that fails; then their failure is its own."""

POLL = 0.003
"""Seconds between looks for a chunk that another process is bringing: what one takes at 200 Mbit/s."""

Located: TypeAlias = dict[Digest, tuple[PackMap, PackEntry]]
"""Where wanted chunks are."""


class PackStore:
    """The chunks of `packs`, read from `reader`.

    `flying` is shared by the stores of a process. With `local` (the cache) reads bring along what lies beside and ahead of
    them as `limits` say, and what is found there is not fetched; without it nothing but the wanted chunks is moved. The pool is
    shared and belongs to whoever made it; without one, the thread that asks makes all requests itself, one after another, which
    is right for local files.
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
        flying: Flying | None = None,
        on_bulk: Callable[[], None] = lambda: None,
        link: Link | None = None,
        timeout: float = TIMEOUT,
        near: Near | None = None,
    ) -> None:
        """`on_bulk` is called, more than once, when a reader goes through a pack from front to back (`BULK`). `link` is what is
        known of the way to `reader`; several stores may share it. `near` is asked before `reader`, for what that would be."""
        self._packs = tuple(packs)
        self._reader = reader
        self._pool = pool
        self._local = local
        self._limits = limits or Limits()
        self._timeout = timeout
        self._flying = flying or Flying()
        self._on_bulk = on_bulk
        self._link = link or Link()
        self._transfers = Transfers(
            reader, near, flying=self._flying, local=local, limits=self._limits, link=self._link, stats=stats
        )
        self._streams: dict[Digest, tuple[Stream, ...]] = {}

    @property
    def name(self) -> str:
        return f"packs({self._reader.name})"

    def get(self, wanted: Sequence[ChunkRef]) -> list[bytes]:
        deadline = time.monotonic() + self._timeout
        got: dict[Digest, bytes] = {}
        compressed = [ref.digest for ref in wanted if ref.compressed]
        if compressed:
            raise ChunkMissingError(f"chunk {to_text(compressed[0])} is in none of the packs of {self.name}", compressed)
        rest = list(dict.fromkeys(ref.digest for ref in wanted))
        for attempt in itertools.count(1):
            if not rest:
                break
            with self._flying.lock:
                coming = {digest: self._flying.futures[digest] for digest in rest if digest in self._flying.futures}
            # Others may ask another source, or ask in vain: whoever waited for them then asks for itself.
            others = frozenset(coming) if attempt <= OTHERS_MAX else frozenset()
            # Looked up after what is coming: what has just landed is in the cache by now, since it is put there first.
            got |= self._peek([digest for digest in rest if digest not in coming])
            located = self._locate([digest for digest in rest if digest not in coming and digest not in got])
            self._fetch_all(self._begin(located, coming))
            got |= self._collect(coming, others)
            rest = [digest for digest in rest if digest not in got]
            if rest:
                self._await_others(rest, got, deadline)
                rest = [digest for digest in rest if digest not in got]
        return [got[ref.digest] for ref in wanted]

    def bring(self, digests: Sequence[Digest], range_bytes: int) -> Mapping[Digest, PuzzlefsError]:
        """Have chunks brought to the cache in the order given, a few requests at a time; whoever reads one meanwhile waits for
        it here. Returns when all have come or failed: those that failed, and why. What others are bringing is left to them.

        Raises:
            SourceUnavailableError, ChunkCorruptError: the indexes cannot be had.
        """
        requests, missing = self._promise(digests, range_bytes)
        for lane in self._begin_lanes(requests):
            lane.result()
        failed: dict[Digest, PuzzlefsError] = {} if missing is None else dict.fromkeys(missing.digests, missing)
        for digest, future in itertools.chain.from_iterable(request.futures.items() for request in requests):
            error = future.exception()
            if isinstance(error, PuzzlefsError):
                failed[digest] = error
        return failed

    def begin(self, digests: Sequence[Digest], range_bytes: int) -> None:
        """As `bring`, but it does not wait for what comes.

        Raises:
            As `bring`; and ChunkMissingError: some are in no pack, the others are begun all the same.
        """
        requests, failure = self._promise(digests, range_bytes)
        self._begin_lanes(requests)
        if failure is not None:
            raise failure

    def _promise(self, digests: Sequence[Digest], range_bytes: int) -> tuple[list[Request], ChunkMissingError | None]:
        """The requests for those of `digests` that are neither here nor on their way, in their order; what is in no pack."""
        if self._local is None or self._pool is None:
            return [], None
        local = self._local
        failure: ChunkMissingError | None = None
        wanted = [digest for digest in dict.fromkeys(digests) if not local.has(digest)]
        try:
            located = self._locate(wanted)
        except ChunkMissingError as error:
            failure = error
            located = self._locate([digest for digest in wanted if digest not in error.digests])
        limits = replace(self._limits, range_max=range_bytes)
        place = {digest: number for number, digest in enumerate(located)}
        requests: list[Request] = []
        with self._flying.lock:
            for pack, entries in _by_pack(located).items():
                mine = [entry for entry in entries if entry.digest not in self._flying.futures]
                ranges = self._mine(planner.coalesce(mine, limits), frozenset())
                ranges.sort(key=lambda found: min(place[entry.digest] for entry in found.entries))
                requests += [self._request(pack, group, frozenset()) for group in self._grouped(ranges, limits)]
        requests.sort(key=lambda request: min(place[digest] for digest in request.futures))
        return requests, failure

    def _begin_lanes(self, requests: Sequence[Request]) -> list[Future[None]]:
        """Make the requests in order, `LANES` at a time: more would share the link and have the first come last."""
        if self._pool is None:
            return []
        queue = deque(requests)

        def lane() -> None:
            with suppress(IndexError):
                while True:
                    self._transfers.fetch(queue.popleft())

        try:
            return [self._pool.now.submit(lane) for _ in range(min(LANES, len(requests)))]
        except RuntimeError:  # the pool is closed
            while queue:
                for digest, future in queue.popleft().futures.items():
                    message = f"chunk {to_text(digest)} from {self.name}: fetching it has been stopped"
                    error = SourceUnavailableError(message, retryable=True)
                    self._flying.settle(digest, future, error)
            return []

    def risk(self) -> int:
        """See `Foreseeing`."""
        return risk(self._link.worth())

    def has(self, digest: Digest) -> bool:
        return False

    def where(self, digest: Digest) -> str:
        """For errors: the pack that the chunk is in, as far as the indexes here tell. Never raises."""
        try:
            pack, _ = self._locate([digest])[digest]
        except PuzzlefsError:
            return self.name
        return self._transfers.place(pack)

    def close(self) -> None:
        """Nothing is held: pool, packs and reader belong to whoever made them."""

    def _locate(self, digests: Sequence[Digest]) -> Located:
        """Where each chunk is. An index that cannot be had matters only if the others lack a chunk."""
        located: Located = {}
        failure: PuzzlefsError | None = None
        rest = list(digests)
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
            raise translate(failure, rest, self._reader.name) from failure
        if rest:
            raise ChunkMissingError(f"chunk {to_text(rest[0])} is in none of {len(self._packs)} packs of {self.name}", rest)
        return located

    def _known_places(self, digests: Iterable[Digest]) -> Located:
        """Where chunks are, as far as the indexes that have been read tell; not those of profiles, which come as a whole."""
        known = [(pack, pack.known) for pack in self._packs if pack.known is not None and not pack.known.has_groups]
        found = ((digest, pack, index.find(digest)) for digest in digests for pack, index in known)
        return {digest: (pack, entry) for digest, pack, entry in found if entry is not None}

    def _peek(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        if self._local is None:
            return {}
        found = ((digest, self._local.peek(digest)) for digest in digests)
        return {digest: raw for digest, raw in found if raw is not None}

    def _begin(self, located: Located, coming: dict[Digest, Future[bytes]]) -> list[Request]:
        """Plan, promise every chunk of the plan, and start reading ahead.

        Returns the requests that the caller must see to, and adds to `coming` what it must wait for. What another process
        has claimed is in neither.
        """
        # Whoever asks for what is coming moves on through the pack all the same.
        followed = self._known_places(coming)
        by_pack = _by_pack({**located, **followed})
        wanted = frozenset(located)
        now: list[Request] = []
        beside: list[Request] = []
        pool = self._pool if self._local is not None else None
        slots = pool.take_beside(BESIDE) if pool is not None else 0
        try:
            with self._flying.lock:
                plans: list[tuple[PackMap, Plan]] = []
                for pack, entries in by_pack.items():
                    plans.append(
                        (pack, self._plan(pack, entries, followed, slots - sum(len(plan.beside) for _, plan in plans)))
                    )
                # Only now that nothing can fail any more: whoever finds a promise waits for it.
                for pack, plan in plans:
                    ranges = self._mine(plan.now, wanted)
                    now += [self._request(pack, group, wanted) for group in self._grouped(ranges, self._limits)]
                    parts = [self._mine([found], frozenset()) for found in plan.beside]
                    beside += [self._request(pack, part, frozenset()) for part in parts if part]
                promised = self._flying.futures
                coming |= {digest: promised[digest] for digest in located if digest in promised and digest not in coming}
        finally:
            if pool is not None:
                pool.give_beside(slots - len(beside))
        if pool is not None:
            for request in beside:
                pool.run_beside(partial(self._transfers.fetch, request))
        return now

    def _plan(self, pack: PackMap, entries: Sequence[PackEntry], coming: Container[Digest], slots: int) -> Plan:
        new = [entry for entry in entries if entry.digest not in self._flying.futures and entry.digest not in coming]
        local = self._local
        if local is None:
            return planner.exactly(new, self._limits)
        new = [entry for entry in new if self._flying.claim(entry.digest, local.has, wanted=True)]

        def here(entry: PackEntry) -> bool:
            return entry.digest in self._flying.futures or local.has(entry.digest)

        limits = scaled(self._limits, self._link.worth())
        plan = planner.plan(entries, new, self._streams.get(pack.digest, ()), pack.between, here, slots, limits)
        self._streams[pack.digest] = plan.streams
        if any(stream.used > BULK for stream in plan.streams):
            self._on_bulk()
        return plan

    def _mine(self, ranges: Sequence[Range], wanted: frozenset[Digest]) -> list[Range]:
        """What of `ranges` this process is to fetch: without the bytes of what another one brings, or of what is here. Where
        the reader takes one range a request, a few of them in between come along."""
        if self._local is None:
            return list(ranges)
        has = self._local.has
        claim = self._flying.claim
        holes = replace(self._limits, gap=0 if self._at_once > 1 else self._limits.gap)
        mine: list[Range] = []
        for found in ranges:
            entries = [entry for entry in found.entries if claim(entry.digest, has, wanted=entry.digest in wanted)]
            mine += planner.coalesce(entries, holes)
        return mine

    @property
    def _at_once(self) -> int:
        return self._reader.ranges_at_once if isinstance(self._reader, RangesReader) else 1

    def _grouped(self, ranges: Sequence[Range], limits: Limits) -> list[tuple[Range, ...]]:
        return planner.grouped(ranges, self._at_once, limits)

    def _request(self, pack: PackMap, ranges: Sequence[Range], wanted: frozenset[Digest]) -> Request:
        """The request for `ranges`, whose chunks are promised. The lock is held by the caller."""
        return Request(pack, ranges, self._flying.enter([entry for found in ranges for entry in found.entries]), wanted)

    def _fetch_all(self, requests: Sequence[Request]) -> None:
        """Make the requests: one in this thread, the others beside it, or all here where there is no pool."""
        inline = requests
        if self._pool is not None:
            inline = requests[:1]
            for request in requests[1:]:
                self._pool.run_now(partial(self._transfers.fetch, request))
        for request in inline:
            self._transfers.fetch(request)

    def _await_others(self, digests: Sequence[Digest], got: dict[Digest, bytes], deadline: float) -> None:
        """Wait until one of `digests` is in the cache (then it is added to `got`), or may be fetched here: another process was
        bringing it and has failed or died."""
        with self._flying.claims.awaiting():
            while True:
                found = self._peek(digests)
                if found:
                    got |= found
                    return
                if any(self._flying.claims.take(digest) for digest in digests):
                    got |= self._peek(digests)  # it may have come between the look and the claim
                    self._flying.claims.release(digest for digest in digests if digest in got)
                    return
                if time.monotonic() > deadline:
                    message = (
                        f"chunk {to_text(digests[0])}: waited {self._timeout:g} s for another process that is fetching it, from"
                    )
                    message += f" {self.name} or where its images are from"
                    raise SourceUnavailableError(message, retryable=False)
                time.sleep(POLL)

    def _collect(self, coming: Mapping[Digest, Future[bytes]], others: Container[Digest]) -> dict[Digest, bytes]:
        """Wait for all of `coming`; those that `others` bring may fail, and lack then.

        If one of one's own fails, the rest is kept in the cache, so that it need not be fetched again.
        """
        got: dict[Digest, bytes] = {}
        errors: list[PuzzlefsError] = []
        for digest, future in coming.items():
            try:
                got[digest] = future.result(max(0.0, min(self._timeout, remaining())))
            except TimeoutError:
                message = f"chunk {to_text(digest)}: gave up waiting for {self.name}, which did not answer in time"
                errors.append(SourceUnavailableError(message, retryable=False))
                break
            except PuzzlefsError as error:
                if digest not in others:
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


def _by_pack(located: Located) -> dict[PackMap, list[PackEntry]]:
    """The chunks of each pack, in the order given."""
    by_pack: dict[PackMap, list[PackEntry]] = {}
    for pack, entry in located.values():
        by_pack.setdefault(pack, []).append(entry)
    return by_pack
