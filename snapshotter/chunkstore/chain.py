"""The chunk store chains, each built in one place, so that its order can be read.

For a mount worker, from the reader of a file inwards::

    foreseen → read noted → recent → cache → fetch noted → single-flight → retry
        → fallback( verify(packs(source 1)), verify(packs(source 2)), … )

* What was used last comes from memory, before any system call; then the cache: a hit waits for no other thread.
* Single-flight stands before everything that may take long, retries included, and puts what it got into the cache itself,
  before it lets go of the chunk.
* Retry stands before the fallback: when a source fails, asking the next one is quicker than waiting for the first.
* Verify stands around each source, not around them all, since a wrong answer of one is a reason to ask the next.
* The planner works inside `packs`: what lies beside a chunk is known there. Other nodes' caches are asked there too, for all
  that a request would bring, before it is made.

The cache, the flights, the threads and the counters are the process's, shared by all its layers (`Node`). The two functions
at the end are for the ``mount`` command, which reads a layout on the same machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from snapshotter.chunkstore.background import Background, BackgroundPolicy, PackRest
from snapshotter.chunkstore.base import BlobReader, ChunkStore
from snapshotter.chunkstore.blobs import BlobStore
from snapshotter.chunkstore.bringing import Bringing
from snapshotter.chunkstore.cache import CachedStore, ChunkCache
from snapshotter.chunkstore.claims import Claims
from snapshotter.chunkstore.directory import Sealing, VerityOf
from snapshotter.chunkstore.fallback import Fallback
from snapshotter.chunkstore.flying import Flying
from snapshotter.chunkstore.foreseen import Foreseen
from snapshotter.chunkstore.health import Health
from snapshotter.chunkstore.indexes import IndexStore, fetch_index
from snapshotter.chunkstore.link import Link
from snapshotter.chunkstore.packmap import PackMap
from snapshotter.chunkstore.packs import PackStore
from snapshotter.chunkstore.peers import Peers
from snapshotter.chunkstore.planner import Limits
from snapshotter.chunkstore.pool import FetchPool
from snapshotter.chunkstore.prefetch import Prefetches, Start
from snapshotter.chunkstore.reads import Observed, Reads
from snapshotter.chunkstore.recent import RecentChunks, RecentStore
from snapshotter.chunkstore.reserve import Cap
from snapshotter.chunkstore.retry import Retry, RetryPolicy
from snapshotter.chunkstore.singleflight import Flights, SingleFlight
from snapshotter.chunkstore.stats import Stats
from snapshotter.chunkstore.verify import Verify
from snapshotter.format.annotations import PackPlace
from snapshotter.format.digest import Digest
from snapshotter.format.pack import PackIndex

LINKS_MAX = 256
"""Sources whose cost is remembered; a hostile image could name any number."""


class Node:
    """What all chains of one process share: the cache and the pack indexes below `root`, threads and counters.

    `cap` bounds the chunks on disk (None: no cap). `read_timeout` bounds a read in seconds; retries end a little
    before it, so that a read fails with the source's reason and not with a bare timeout. `sealing` has the kernel's fs-verity
    check the cached chunks; None where the cache's file system has none. `peers` makes what asks other nodes' caches.
    """

    def __init__(
        self,
        root: Path,
        *,
        cap: Cap | None = None,
        read_timeout: float = 60.0,
        limits: Limits | None = None,
        sealing: Sealing | None = None,
        background: BackgroundPolicy | None = None,
        peers: Callable[[Stats], Peers] | None = None,
    ) -> None:
        self.stats = Stats()
        self._peers = peers(self.stats) if peers is not None else None
        self.reads = Reads()
        self._claims = Claims(root)
        self._flying = Flying(self._claims)
        self.cache = ChunkCache(root, stats=self.stats, cap=cap, sealing=sealing, claims=self._claims)
        self.indexes = IndexStore(root)
        self.pool = FetchPool()
        self._flights = Flights()
        self._prefetches = Prefetches(self.indexes)
        self._links: dict[str, Link] = {}
        self._health = Health()
        self.background = Background(background, self.reads) if background is not None else None
        self._recent = RecentChunks()
        self._limits = limits
        self._read_timeout = read_timeout

    def chain(
        self,
        packs: Sequence[PackPlace],
        sources: Sequence[BlobReader],
        layer: str = "",
        verity_of: VerityOf | None = None,
        on_bulk: Callable[[], None] = lambda: None,
        *,
        complete: bool = False,
    ) -> ChunkStore:
        """The chunks of a layer that lie in `packs`, which `sources` are asked for in their order; `layer` names it in reports.

        `verity_of` tells the fs-verity digests that the layer names for its chunks. With `complete`, and where a policy was
        given, the rest of the layer is fetched when it is quiet, until the chain is closed.

        Nothing is read here: an index is opened when a chunk is first looked for. Sources are not closed with the chain.
        """
        maps = [self.indexes.map(place, sources) for place in packs]
        stores = [self._store(maps, source, on_bulk=on_bulk, link=self._link(source)) for source in sources]
        fetched = self._verified(stores)
        retried = Retry(
            Fallback(fetched, self._health), stats=self.stats, policy=RetryPolicy(deadline=self._read_timeout * 0.8)
        )
        single = SingleFlight(
            retried,
            stats=self.stats,
            flights=self._flights,
            local=self.cache,
            claims=self._claims,
            timeout=self._read_timeout,
        )
        fetched_once = Observed(single, self.reads, "fetch", layer)
        cached = CachedStore(self.cache, fetched_once, verity_of)
        unnoted = RecentStore(self._recent, cached)
        noted = Observed(unnoted, self.reads, "read", layer)
        if not stores:
            return noted
        stop = self._complete(packs, sources, layer, verity_of) if complete and verity_of is not None else lambda: None
        told = partial(self._prefetches.fetches, layer)
        return Foreseen(noted, unnoted, lambda: stores[self._health.best(fetched)], stop, told, on_bulk)

    def _link(self, source: BlobReader) -> Link:
        """What is known of the way to `source`, which many layers may be read from."""
        if len(self._links) > LINKS_MAX:
            self._links.clear()
        return self._links.setdefault(source.name, Link())

    def bring(self, packs: Sequence[PackPlace], sources: Sequence[BlobReader], start: Start) -> None:
        """Begin to fetch what a start is going to read (see `prefetch`), in the background; reads of it wait for it here.

        Raises nothing: what does not come is fetched when it is read.
        """
        self._prefetches.begin(start, packs, sources, partial(self._bringing, sources))

    def settle(self) -> None:
        """Wait until the starts that are being fetched have come, or failed."""
        self._prefetches.settle()

    def _complete(
        self, packs: Sequence[PackPlace], sources: Sequence[BlobReader], layer: str, verity_of: VerityOf
    ) -> Callable[[], None]:
        """Fetch the rest of `layer`: the chunks of `packs` for which it names a digest. What is returned ends that."""
        if self.background is None:
            return lambda: None
        indexes = partial(self.indexes.open, readers=sources)
        has = lambda digest: verity_of(digest) is not None  # noqa: E731
        rest = PackRest(self._bringing(sources, packs), packs, indexes, has, self.cache)
        self.background.add(layer, rest)
        return partial(self.background.drop, layer, rest)

    def _bringing(self, sources: Sequence[BlobReader], places: Sequence[PackPlace]) -> Bringing:
        """The packs at `places` of all `sources`, for what nobody waits for."""
        maps = [self.indexes.map(place, sources) for place in places]
        stores = [self._store(maps, source) for source in sources]
        return Bringing(list(zip(self._verified(stores), stores, strict=True)), self._health)

    def _store(
        self,
        maps: Sequence[PackMap],
        source: BlobReader,
        *,
        on_bulk: Callable[[], None] = lambda: None,
        link: Link | None = None,
    ) -> PackStore:
        return PackStore(
            maps,
            source,
            pool=self.pool,
            stats=self.stats,
            local=self.cache,
            limits=self._limits,
            flying=self._flying,
            on_bulk=on_bulk,
            link=link,
            timeout=self._read_timeout,
            near=self._peers,
        )

    def _verified(self, stores: Sequence[PackStore]) -> list[Verify]:
        return [Verify(store, stats=self.stats, local=self.cache, where=store.where) for store in stores]

    def fetch_indexes(self, packs: Sequence[PackPlace], sources: Sequence[BlobReader]) -> None:
        """Bring the indexes of `packs` to this node at once, several at a time (see `indexes.IndexStore.fetch`)."""
        self.indexes.fetch(packs, sources, self.pool.now)

    def report(self) -> dict[str, Any]:
        """What this process has done and does, as JSON values: ``counts`` by name and source, ``reads`` (`Reads.report`)."""
        counts = {what.value: by_source for what, by_source in self.stats.snapshot().items() if by_source}
        background = self.background.report() if self.background is not None else {}
        return {"counts": counts, "reads": self.reads.report(), "background": background}

    def close(self) -> None:
        """End the threads, after what they have begun, and write what the cache has queued. Calling it again does nothing."""
        if self.background is not None:
            self.background.close()
        self._prefetches.close()
        self.pool.close()
        if self._peers is not None:
            self._peers.close()
        self.cache.close()
        self._claims.close()


def layout_chain(reader: BlobReader, size_of: Callable[[Digest], int | None], stats: Stats) -> ChunkStore:
    """The chunks of an image in upstream's form in a layout on this machine, where every chunk is a blob.

    `size_of` tells a blob's stored size in bytes, None where there is no such blob. Nothing is cached on disk and no thread
    is started; `reader` is not closed with the chain. Order: recent → single-flight → verify → blobs.
    """
    return _local(Verify(BlobStore(reader, size_of, stats=stats, on_node=True), stats=stats), stats)


def packs_chain(packs: Sequence[PackPlace], reader: BlobReader, stats: Stats) -> ChunkStore:
    """The chunks of an image in packs in a layout on this machine, likewise. Order: recent → single-flight → verify → packs."""
    maps = [PackMap(place.pack, partial(_index_of, place, reader)) for place in packs]
    store = PackStore(maps, reader, stats=stats)
    return _local(Verify(store, stats=stats, where=store.where), stats)


def _local(source: ChunkStore, stats: Stats) -> ChunkStore:
    return RecentStore(RecentChunks(), SingleFlight(source, stats=stats))


def _index_of(place: PackPlace, reader: BlobReader) -> PackIndex:
    return fetch_index(place, [reader])[0]
