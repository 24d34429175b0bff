"""A source that is gone costs its time-out once, and is found to be back soon."""

from __future__ import annotations

import pytest

from snapshotter.chunkstore.base import SourceUnavailableError
from snapshotter.chunkstore.fallback import Fallback
from snapshotter.chunkstore.health import FIRST_PAUSE, LONGEST_PAUSE, Health
from tests.support.chunks import StubStore, refs, some_chunks

CHUNKS = some_chunks(4)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def gone(store: StubStore, times: int = 1) -> None:
    store.failures = [SourceUnavailableError("gone") for _ in range(times)]


def test_a_source_that_failed_is_asked_last_until_its_pause_ends(clock: Clock) -> None:
    first, second = StubStore(CHUNKS, "first"), StubStore(CHUNKS, "second")
    fallback = Fallback([first, second], Health(clock))
    gone(first)
    for _ in range(5):
        assert fallback.get(refs(CHUNKS[:1])) == CHUNKS[:1]
    assert (len(first.asked), len(second.asked)) == (1, 5)
    clock.now += FIRST_PAUSE
    fallback.get(refs(CHUNKS[:1]))
    fallback.get(refs(CHUNKS[:1]))
    assert (len(first.asked), len(second.asked)) == (3, 5)


def test_what_only_the_ailing_source_has_is_still_had(clock: Clock) -> None:
    first, second = StubStore(CHUNKS, "first"), StubStore(CHUNKS[:1], "second")
    fallback = Fallback([first, second], Health(clock))
    gone(first)
    fallback.get(refs(CHUNKS[:1]))
    assert fallback.get(refs(CHUNKS)) == CHUNKS


def test_pauses_grow_and_have_a_longest(clock: Clock) -> None:
    health, store, other = Health(clock), StubStore(name="one"), StubStore(name="two")
    pauses = []
    for _ in range(10):
        health.failed(store)
        start = clock.now
        while health.order([store, other])[0] is other:
            clock.now += 0.5
        pauses.append(clock.now - start)
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    assert pauses[-1] == LONGEST_PAUSE


def test_failures_at_the_same_time_count_once(clock: Clock) -> None:
    health, store, other = Health(clock), StubStore(name="one"), StubStore(name="two")
    for _ in range(10):
        health.failed(store)
    clock.now += FIRST_PAUSE
    assert health.order([store, other])[0] is store


def test_one_thread_tries_whether_a_source_is_back(clock: Clock) -> None:
    health, store, other = Health(clock), StubStore(name="one"), StubStore(name="two")
    health.failed(store)
    clock.now += FIRST_PAUSE
    assert [health.order([store, other])[0].name for _ in range(3)] == ["one", "two", "two"]
    health.answered(store)
    assert health.order([store, other])[0] is store


def test_a_source_that_lacks_what_another_has_is_asked_after_it(clock: Clock) -> None:
    mirror, registry = StubStore(name="mirror"), StubStore(CHUNKS, "registry")
    fallback = Fallback([mirror, registry], Health(clock))
    for _ in range(3):
        assert fallback.get(refs(CHUNKS[:2])) == CHUNKS[:2]
    assert (len(mirror.asked), len(registry.asked)) == (1, 3)


def test_the_best_is_the_first_that_has_not_failed_lately_and_telling_it_changes_nothing(clock: Clock) -> None:
    health, stores = Health(clock), [StubStore(name="one"), StubStore(name="two")]
    assert health.best(stores) == 0
    health.failed(stores[0])
    assert health.best(stores) == health.best(stores) == 1
    health.failed(stores[1])
    assert health.best(stores) == 0
    health.answered(stores[1])
    clock.now += FIRST_PAUSE
    assert health.best(stores) == 0
    assert health.order(stores) == stores, "whose turn it is to find out has not been taken"
