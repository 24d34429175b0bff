"""Threads that want the same chunk: who fetches, who waits, and what happens when the one who fetches fails."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from snapshotter.chunkstore.base import ChunkRef, SourceUnavailableError
from snapshotter.chunkstore.singleflight import Flights, SingleFlight
from snapshotter.chunkstore.stats import Count, Stats
from tests.support.chunks import MemoryLocal, StubStore, refs, some_chunks

CHUNKS = some_chunks(4)
PATIENCE = 10


class Waiting:
    """A clock that tells how many threads have boarded and now wait: `get` asks it once, and once more before each wait."""

    def __init__(self) -> None:
        self.waits = threading.Semaphore(0)
        self.local = threading.local()

    def __call__(self) -> float:
        if getattr(self.local, "started", False):
            self.waits.release()
        self.local.started = True
        return 0.0

    def until(self, count: int) -> None:
        for _ in range(count):
            assert self.waits.acquire(timeout=PATIENCE)


class Gate:
    """Holds the first `get` of a stub until it is opened."""

    def __init__(self, stub: StubStore) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        self.first = True
        stub.before = self

    def __call__(self, wanted: Sequence[ChunkRef]) -> None:
        if self.first:
            self.first = False
            self.entered.set()
            assert self.opened.wait(PATIENCE)


def test_threads_that_want_the_same_chunk_cause_one_fetch() -> None:
    stub, clock, stats = StubStore(CHUNKS), Waiting(), Stats()
    store, gate = SingleFlight(stub, stats=stats, clock=clock), Gate(stub)
    with ThreadPoolExecutor(5) as pool:
        leader = pool.submit(store.get, refs(CHUNKS[:1]))
        assert gate.entered.wait(PATIENCE)
        waiters = [pool.submit(store.get, refs(CHUNKS[:1])) for _ in range(4)]
        clock.until(4)
        gate.opened.set()
        assert [task.result(PATIENCE) for task in (leader, *waiters)] == [CHUNKS[:1]] * 5
    assert len(stub.asked) == 1
    assert stats.total(Count.SHARED) == 4


def test_two_chains_that_share_their_flights_fetch_once_between_them() -> None:
    first, second, clock, flights = StubStore(CHUNKS), StubStore(CHUNKS), Waiting(), Flights()
    a = SingleFlight(first, stats=Stats(), flights=flights)
    b = SingleFlight(second, stats=Stats(), flights=flights, clock=clock)
    gate = Gate(first)
    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(a.get, refs(CHUNKS[:1]))
        assert gate.entered.wait(PATIENCE)
        waiter = pool.submit(b.get, refs(CHUNKS[:2]))
        clock.until(1)
        gate.opened.set()
        assert (leader.result(PATIENCE), waiter.result(PATIENCE)) == (CHUNKS[:1], CHUNKS[:2])
    assert second.asked == [[refs(CHUNKS)[1].digest]]


@pytest.mark.parametrize("failure", [SourceUnavailableError("gone"), RuntimeError("a bug"), SystemExit()], ids=repr)
def test_when_the_leader_fails_a_waiter_becomes_leader_and_nobody_gets_its_error(failure: BaseException) -> None:
    stub, clock = StubStore(CHUNKS), Waiting()
    store, gate = SingleFlight(stub, stats=Stats(), clock=clock), Gate(stub)

    def first_fails(wanted: Sequence[ChunkRef]) -> None:
        if gate.first:
            gate(wanted)
            raise failure

    stub.before = first_fails
    with ThreadPoolExecutor(4) as pool:
        leader = pool.submit(store.get, refs(CHUNKS[:1]))
        assert gate.entered.wait(PATIENCE)
        waiters = [pool.submit(store.get, refs(CHUNKS[:1])) for _ in range(3)]
        clock.until(3)
        gate.opened.set()
        assert [task.result(PATIENCE) for task in waiters] == [CHUNKS[:1]] * 3
        assert leader.exception(PATIENCE) is failure


def test_a_leader_that_failed_on_one_chunk_does_not_take_the_others_with_it() -> None:
    stub, clock = StubStore(CHUNKS[:1]), Waiting()
    store, gate = SingleFlight(stub, stats=Stats(), clock=clock), Gate(stub)
    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(store.get, refs(CHUNKS[:2]))
        assert gate.entered.wait(PATIENCE)
        waiter = pool.submit(store.get, refs(CHUNKS[:1]))
        clock.until(1)
        gate.opened.set()
        assert leader.exception(PATIENCE) is not None
        assert waiter.result(PATIENCE) == CHUNKS[:1]


def test_a_waiter_gives_up_in_the_end_and_says_what_it_waited_for() -> None:
    stub, stats = StubStore(CHUNKS), Stats()
    flights = Flights()
    patient = SingleFlight(stub, stats=stats, flights=flights)
    hasty = SingleFlight(stub, stats=stats, flights=flights, timeout=0)
    gate = Gate(stub)
    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(patient.get, refs(CHUNKS[:1]))
        assert gate.entered.wait(PATIENCE)
        with pytest.raises(SourceUnavailableError, match=r"gave up after waiting 0 s .* from stub") as caught:
            hasty.get(refs(CHUNKS[:1]))
        gate.opened.set()
        assert leader.result(PATIENCE) == CHUNKS[:1]
    assert not caught.value.retryable
    assert stats.total(Count.GAVE_UP) == 1


def test_leaders_of_overlapping_sets_do_not_wait_for_each_other_in_a_circle() -> None:
    stub = StubStore(CHUNKS)
    clock, flights = Waiting(), Flights()
    store = SingleFlight(stub, stats=Stats(), flights=flights, clock=clock)
    meeting = threading.Barrier(2)

    def meet(wanted: Sequence[ChunkRef]) -> None:
        meeting.wait(PATIENCE)

    stub.before = meet
    a, b, c = refs(CHUNKS[:3])
    with ThreadPoolExecutor(2) as pool:
        # Whoever boards first leads the shared chunk as well; both are inside the stub at the same time.
        one = pool.submit(store.get, [a, b])
        two = pool.submit(store.get, [b, c])
        assert one.result(PATIENCE) == CHUNKS[:2]
        assert two.result(PATIENCE) == CHUNKS[1:3]
    assert sorted(digest for asked in stub.asked for digest in asked) == sorted(ref.digest for ref in (a, b, c))


def test_a_leader_looks_into_the_cache_and_leaves_there_what_it_fetched() -> None:
    stub, local = StubStore(CHUNKS[1:2]), MemoryLocal()
    local.put(refs(CHUNKS)[0].digest, CHUNKS[0])
    store = SingleFlight(stub, stats=Stats(), local=local)
    assert store.get(refs(CHUNKS[:2])) == CHUNKS[:2]
    assert stub.asked == [[refs(CHUNKS)[1].digest]]
    assert local.chunks[refs(CHUNKS)[1].digest] == CHUNKS[1]


def test_names_of_raw_and_of_stored_bytes_are_different_things() -> None:
    stub, local = StubStore(CHUNKS), MemoryLocal()
    store = SingleFlight(stub, stats=Stats(), local=local)
    digest = refs(CHUNKS)[0].digest
    assert store.get([ChunkRef(digest, compressed=True)]) == CHUNKS[:1]
    assert local.chunks == {}
