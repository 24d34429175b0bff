"""Chunks out of packs: how many requests, what comes along, and what damage does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from snapshotter.chunkstore.base import ChunkCorruptError, ChunkMissingError, ChunkRef, SourceUnavailableError
from snapshotter.chunkstore.claims import NoClaims
from snapshotter.chunkstore.flying import Flying
from snapshotter.chunkstore.packmap import PackMap
from snapshotter.chunkstore.packs import PackStore
from snapshotter.chunkstore.planner import Limits
from snapshotter.chunkstore.pool import FetchPool
from snapshotter.chunkstore.stats import Count, Stats
from snapshotter.errors import CorruptError, NotFoundError, PuzzlefsError, UnavailableError
from snapshotter.format.annotations import PackPlace
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.format.pack import HEADER, PackIndex
from snapshotter.registry.failures import RegistryUnavailableError
from tests.support.chunks import MemoryBlobs, MemoryLocal, RangedBlobs, at_once, make_pack, refs, some_chunks

CHUNKS = some_chunks(40)
PLACE, PACK, ENTRIES = make_pack(CHUNKS)
STORED = ENTRIES[1].stored_length  # of an incompressible chunk, the longer kind
QUIET = Limits(gap=0, window_first=0, window_max=0)
PATIENCE = 10


def index_of(place: PackPlace, pack: bytes) -> PackIndex:
    return PackIndex.parse(pack[place.index_offset :][: place.index_length], place.index_offset)


class NearChunks:
    """`Near` over a few chunks that logs what it is asked for."""

    def __init__(self, chunks: Sequence[bytes]) -> None:
        self.chunks = {sha256(raw): raw for raw in chunks}
        self.asked: list[tuple[Digest, list[Digest]]] = []

    def find(self, pack: Digest, digests: Sequence[Digest]) -> Iterator[tuple[Digest, bytes]]:
        self.asked.append((pack, list(digests)))
        for digest in digests:
            if digest in self.chunks:
                yield digest, self.chunks[digest]


class ClaimedElsewhere(NoClaims):
    """Another process brings some chunks."""

    def __init__(self, digests: set[Digest]) -> None:
        self.digests = digests

    def take(self, digest: Digest) -> bool:
        return digest not in self.digests


class Setup:
    """One pack behind a reader, and the means to make stores of it."""

    def __init__(self) -> None:
        self.reader, self.local, self.stats, self.pool = MemoryBlobs("memory:5000/image"), MemoryLocal(), Stats(), FetchPool()
        self.reader.add(PACK)

    def store(self, limits: Limits | None = None, *, local: bool = True, maps: list[PackMap] | None = None) -> PackStore:
        maps = maps or [PackMap(PLACE.pack, lambda: index_of(PLACE, PACK))]
        kept = self.local if local else None
        return PackStore(maps, self.reader, pool=self.pool, stats=self.stats, local=kept, limits=limits)

    def near(self, *chunks: bytes, limits: Limits = QUIET) -> tuple[PackStore, NearChunks]:
        """A store with `chunks` in other nodes' caches."""
        near = NearChunks(chunks)
        maps = [PackMap(PLACE.pack, lambda: index_of(PLACE, PACK))]
        store = PackStore(maps, self.reader, pool=self.pool, stats=self.stats, local=self.local, limits=limits, near=near)
        return store, near

    def settle(self) -> None:
        """Wait until everything that was begun has ended; afterwards nothing can be read ahead."""
        self.pool.close()


@pytest.fixture
def setup() -> Iterator[Setup]:
    made = Setup()
    yield made
    made.pool.close()


class TestOtherNodes:
    def test_what_they_have_is_not_read_from_the_pack(self, setup: Setup) -> None:
        store, near = setup.near(*CHUNKS)
        assert store.get(refs(CHUNKS[3:19])) == CHUNKS[3:19]
        assert setup.reader.asked == []
        assert near.asked == [(PLACE.pack, [sha256(raw) for raw in CHUNKS[3:19]])]

    def test_what_they_lack_is_read_and_not_what_lies_between(self, setup: Setup) -> None:
        store, _ = setup.near(*CHUNKS[5:15])
        assert store.get(refs(CHUNKS[:20])) == CHUNKS[:20]
        assert [offset for _, offset, _ in setup.reader.asked] == [ENTRIES[0].offset, ENTRIES[15].offset]
        assert sum(length for *_, length in setup.reader.asked) == sum(
            entry.stored_length for entry in (*ENTRIES[:5], *ENTRIES[15:20])
        )

    def test_what_is_left_is_one_request_to_a_reader_that_does_several_ranges(self, setup: Setup) -> None:
        setup.reader = RangedBlobs()
        setup.reader.add(PACK)
        store, _ = setup.near(*CHUNKS[5:15])
        wanted = [*CHUNKS[:10], *CHUNKS[12:20], CHUNKS[25]]
        assert store.get(refs(wanted)) == wanted
        assert len(setup.reader.asked) == 1

    def test_what_is_brought_unasked_comes_from_them_into_the_cache(self, setup: Setup) -> None:
        store, _ = setup.near(*CHUNKS[:30])
        store.bring([sha256(raw) for raw in CHUNKS], 1 << 20)
        assert setup.local.chunks == {sha256(raw): raw for raw in CHUNKS}
        assert [offset for _, offset, _ in setup.reader.asked] == [ENTRIES[30].offset]

    def test_they_suffice_where_the_pack_cannot_be_read(self, setup: Setup) -> None:
        setup.reader.blobs.clear()
        store, _ = setup.near(*CHUNKS[:5])
        assert store.get(refs(CHUNKS[:5])) == CHUNKS[:5]
        with pytest.raises(ChunkMissingError):
            store.get(refs(CHUNKS[3:6]))


class TestRequests:
    def test_a_contiguous_run_is_one_request(self, setup: Setup) -> None:
        assert setup.store(QUIET).get(refs(CHUNKS[3:19])) == CHUNKS[3:19]
        assert setup.reader.asked == [(PLACE.pack, ENTRIES[3].offset, ENTRIES[19].offset - ENTRIES[3].offset)]

    def test_what_is_local_splits_a_run_and_is_not_fetched(self, setup: Setup) -> None:
        for raw in CHUNKS[8:12]:
            setup.local.put(sha256(raw), raw)
        assert setup.store(QUIET).get(refs(CHUNKS[4:16])) == CHUNKS[4:16]
        assert sorted(offset for _, offset, _ in setup.reader.asked) == [ENTRIES[4].offset, ENTRIES[12].offset]

    @pytest.mark.parametrize("ranges_at_once", [8, 1])
    def test_what_another_process_brings_is_moved_here_only_if_a_request_more_would_cost_more(
        self, setup: Setup, monkeypatch: pytest.MonkeyPatch, ranges_at_once: int
    ) -> None:
        reader = RangedBlobs()
        reader.add(PACK)
        monkeypatch.setattr(reader, "ranges_at_once", ranges_at_once)
        lengths: list[int] = []
        real = reader.read_ranges

        def read_ranges(digest: Digest, extents: Sequence[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
            lengths.extend(length for _, length in extents)
            return real(digest, extents)

        monkeypatch.setattr(reader, "read_ranges", read_ranges)
        flying = Flying(ClaimedElsewhere({ENTRIES[0].digest, ENTRIES[2].digest, ENTRIES[4].digest}))
        maps = [PackMap(PLACE.pack, lambda: index_of(PLACE, PACK))]
        limits = Limits(gap=STORED, window_first=0, window_max=0)
        store = PackStore(maps, reader, stats=setup.stats, pool=setup.pool, local=setup.local, limits=limits, flying=flying)
        store.bring([entry.digest for entry in ENTRIES[:6]], 1 << 20)
        assert set(setup.local.chunks) == {ENTRIES[number].digest for number in (1, 3, 5)}
        mine = sum(ENTRIES[number].stored_length for number in (1, 3, 5))
        between = ENTRIES[2].stored_length + ENTRIES[4].stored_length
        assert sum(lengths) == (mine if ranges_at_once > 1 else mine + between)

    def test_chunks_of_several_packs_are_asked_of_each(self, setup: Setup) -> None:
        others = some_chunks(3, seed=1)
        place, pack, _ = make_pack(others)
        setup.reader.add(pack)
        maps = [PackMap(PLACE.pack, lambda: index_of(PLACE, PACK)), PackMap(place.pack, lambda: index_of(place, pack))]
        assert setup.store(QUIET, maps=maps).get(refs([others[2], CHUNKS[0], others[0]])) == [others[2], CHUNKS[0], others[0]]
        assert {digest for digest, _, _ in setup.reader.asked} == {PLACE.pack, place.pack}

    def test_the_ranges_of_one_read_are_under_way_at_the_same_time(self, setup: Setup) -> None:
        meeting = threading.Barrier(3)

        def meet(*_: object) -> None:
            meeting.wait(PATIENCE)

        setup.reader.before = meet
        wanted = [CHUNKS[0], CHUNKS[10], CHUNKS[20]]
        assert setup.store(QUIET).get(refs(wanted)) == wanted

    def test_ranges_of_one_read_are_one_request_to_a_reader_that_does_several(self, setup: Setup) -> None:
        setup.reader = RangedBlobs()
        setup.reader.add(PACK)
        wanted = [CHUNKS[0], CHUNKS[10], CHUNKS[20]]
        assert setup.store(QUIET).get(refs(wanted)) == wanted
        assert len(setup.reader.asked) == 1

    def test_what_is_brought_is_asked_for_in_requests_of_bounded_size_in_the_order_given(self, setup: Setup) -> None:
        setup.reader = RangedBlobs()
        setup.reader.add(PACK)
        wanted = [CHUNKS[number] for number in (31, 9, 1, 5, 35)]
        setup.store(QUIET).bring([sha256(raw) for raw in wanted], 3 * STORED)
        assert [offset for _, offset, _ in setup.reader.asked] == [ENTRIES[31].offset, ENTRIES[5].offset]
        assert [setup.local.chunks[sha256(raw)] for raw in wanted] == wanted

    def test_without_a_cache_nothing_but_the_wanted_is_moved(self, setup: Setup) -> None:
        setup.store(local=False).get(refs(CHUNKS[:1]))
        assert setup.reader.asked == [(PLACE.pack, ENTRIES[0].offset, ENTRIES[0].stored_length)]


class TestReadAhead:
    def test_a_read_brings_what_follows_into_the_cache(self, setup: Setup) -> None:
        setup.store(Limits(window_first=4 * STORED)).get(refs(CHUNKS[:1]))
        assert len(setup.reader.asked) == 1
        assert {sha256(raw) for raw in CHUNKS[1:4]} <= setup.local.chunks.keys()
        assert setup.stats.total(Count.AHEAD) == len(setup.local.chunks)

    def test_reading_all_of_a_pack_takes_ever_longer_requests_and_every_byte_once(self, setup: Setup) -> None:
        store = setup.store(Limits(gap=0, window_first=2 * STORED, window_max=32 * STORED, share=1, beside_max=64 * STORED))
        for raw in CHUNKS:
            if not setup.local.has(sha256(raw)):
                assert store.get(refs([raw])) == [raw]
        lengths = [length for _, _, length in setup.reader.asked]
        assert sum(lengths) == PLACE.index_offset - len(HEADER)
        assert len(lengths) <= 6
        assert lengths[:3] == sorted(lengths[:3])

    def test_what_would_make_the_reader_wait_is_asked_for_beside(self, setup: Setup) -> None:
        store = setup.store(Limits(gap=0, window_first=8 * STORED, beside_max=STORED))
        assert store.get(refs(CHUNKS[:1])) == CHUNKS[:1]
        setup.settle()
        assert len(setup.reader.asked) == 2
        assert len(setup.local.chunks) >= 8

    def test_a_read_of_what_is_being_read_ahead_waits_for_it_instead_of_asking_again(self, setup: Setup) -> None:
        store = setup.store(Limits(gap=0, window_first=8 * STORED, beside_max=0))
        entered, release = threading.Event(), threading.Event()

        def hold_the_second(digest: Digest, offset: int, length: int) -> None:
            if offset > ENTRIES[0].offset:
                entered.set()
                assert release.wait(PATIENCE)

        setup.reader.before = hold_the_second
        store.get(refs(CHUNKS[:1]))
        assert entered.wait(PATIENCE)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(store.get, refs(CHUNKS[4:6]))
            release.set()
            assert waiting.result(PATIENCE) == CHUNKS[4:6]
        setup.settle()
        offsets = [offset for _, offset, _ in setup.reader.asked]
        assert len(offsets) == len(set(offsets))

    def test_a_corrupt_chunk_beside_a_wanted_one_is_not_kept_and_fails_nobody(self, setup: Setup) -> None:
        setup.reader.flip(PLACE.pack, ENTRIES[1].offset + 7)
        assert setup.store(Limits(window_first=4 * STORED)).get(refs(CHUNKS[:1])) == CHUNKS[:1]
        assert sha256(CHUNKS[1]) not in setup.local.chunks
        assert sha256(CHUNKS[2]) in setup.local.chunks

    def test_reading_ahead_that_fails_fails_nobody(self, setup: Setup) -> None:
        def fail_the_second(digest: Digest, offset: int, length: int) -> None:
            if offset > ENTRIES[0].offset:
                raise UnavailableError("cut")

        setup.reader.before = fail_the_second
        assert setup.store(Limits(gap=0, window_first=8 * STORED, beside_max=0)).get(refs(CHUNKS[:1])) == CHUNKS[:1]
        setup.settle()
        assert setup.local.chunks == {}


class TestFailures:
    def test_data_that_does_not_decode_is_corrupt_and_names_pack_and_source(self, setup: Setup) -> None:
        setup.reader.flip(PLACE.pack, ENTRIES[2].offset)  # the magic of a zstd frame
        with pytest.raises(ChunkCorruptError, match=f"{to_text(PLACE.pack)} of memory:5000/image") as caught:
            setup.store(QUIET).get(refs(CHUNKS[:4]))
        assert caught.value.digest == sha256(CHUNKS[2])
        # The good ones of the failed read were moved once and need not be moved again.
        assert {sha256(raw) for raw in (CHUNKS[0], CHUNKS[1], CHUNKS[3])} == setup.local.chunks.keys()

    @pytest.mark.parametrize(
        ("raised", "category", "retryable"),
        [
            (NotFoundError("404"), ChunkMissingError, None),
            (CorruptError("ends early"), ChunkCorruptError, None),
            (UnavailableError("down"), SourceUnavailableError, True),
            (RegistryUnavailableError("certificate", retryable=False), SourceUnavailableError, False),
            (SourceUnavailableError("busy", retry_after=3), SourceUnavailableError, True),
            (ValueError("a bug"), SourceUnavailableError, False),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_a_readers_failure_says_what_to_do(
        self, setup: Setup, raised: Exception, category: type[PuzzlefsError], retryable: bool | None
    ) -> None:
        def fail(*_: object) -> None:
            raise raised

        setup.reader.before = fail
        store = setup.store()
        with pytest.raises(category) as caught:
            store.get(refs(CHUNKS[:2]))
        if isinstance(caught.value, SourceUnavailableError):
            assert caught.value.retryable is retryable
        assert store._flying.futures == {}

    def test_a_short_answer_is_corrupt(self, setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(setup.reader, "read_range", lambda digest, offset, length: b"short")
        with pytest.raises(ChunkCorruptError, match="5 bytes came instead of"):
            setup.store().get(refs(CHUNKS[:1]))

    def test_names_of_stored_bytes_are_in_no_pack(self, setup: Setup) -> None:
        with pytest.raises(ChunkMissingError):
            setup.store().get([ChunkRef(sha256(CHUNKS[0]), compressed=True)])

    def test_an_index_that_cannot_be_had_matters_only_for_chunks_that_no_other_pack_has(self, setup: Setup) -> None:
        def unavailable() -> PackIndex:
            raise RegistryUnavailableError("down")

        maps = [PackMap(sha256(b"other"), unavailable), PackMap(PLACE.pack, lambda: index_of(PLACE, PACK))]
        store = setup.store(maps=maps)
        assert store.get(refs(CHUNKS[:2])) == CHUNKS[:2]
        with pytest.raises(SourceUnavailableError, match="down"):
            store.get(refs(some_chunks(1, seed=9)))

    def test_after_the_pool_was_closed_reads_still_work(self, setup: Setup) -> None:
        setup.pool.close()
        wanted = [CHUNKS[0], CHUNKS[10], CHUNKS[20]]
        assert setup.store(QUIET).get(refs(wanted)) == wanted


def test_many_readers_of_overlapping_parts_move_every_byte_once(setup: Setup) -> None:
    store = setup.store(Limits(gap=0, window_first=4 * STORED))
    gets: list[Callable[[], list[bytes]]] = [lambda at=at: store.get(refs(CHUNKS[at : at + 10])) for at in range(0, 30, 5)]  # type: ignore[misc]
    # Wanted chunks are kept by single-flight above, which is not here: only what overlaps in time is shared.
    assert at_once(gets) == [CHUNKS[at : at + 10] for at in range(0, 30, 5)]
    setup.settle()
    assert store._flying.futures == {}
