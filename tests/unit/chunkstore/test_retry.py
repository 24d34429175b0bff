"""When a source is asked again, and after which pause, on a clock that only sleeping moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.chunkstore.base import ChunkCorruptError, ChunkMissingError, SourceUnavailableError
from snapshotter.chunkstore.retry import Retry, RetryPolicy
from snapshotter.chunkstore.stats import Count, Stats
from snapshotter.errors import PuzzlefsError
from tests.support.chunks import StubStore, refs, some_chunks

CHUNKS = some_chunks(1)
WANTED = refs(CHUNKS)
CORRUPT = ChunkCorruptError(WANTED[0].digest, "there", "garbled")


class Time:
    """A clock and a sleep that moves it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def retrying(*failures: PuzzlefsError, policy: RetryPolicy | None = None, jitter: float = 0.5) -> tuple[Retry, StubStore, Time]:
    stub, time = StubStore(CHUNKS), Time()
    stub.failures = list(failures)
    store = Retry(stub, stats=Stats(), policy=policy, clock=time.clock, sleep=time.sleep, jitter=lambda: jitter)
    return store, stub, time


def test_pauses_double_and_a_random_part_of_them_is_slept() -> None:
    store, stub, time = retrying(*[SourceUnavailableError("busy") for _ in range(4)])
    assert store.get(WANTED) == CHUNKS
    assert time.slept == pytest.approx([0.05, 0.1, 0.2, 0.4])
    assert store._stats.total(Count.RETRIES) == 4
    assert len(stub.asked) == 5


def test_after_the_last_attempt_the_sources_own_error_is_raised() -> None:
    failures = [SourceUnavailableError(f"busy {n}") for n in range(3)]
    store, stub, _ = retrying(*failures, policy=RetryPolicy(attempts=3))
    with pytest.raises(SourceUnavailableError, match="busy 2"):
        store.get(WANTED)
    assert len(stub.asked) == 3


def test_a_source_that_says_it_is_useless_is_not_asked_again() -> None:
    store, stub, time = retrying(SourceUnavailableError("denied", retryable=False))
    with pytest.raises(SourceUnavailableError, match="denied"):
        store.get(WANTED)
    assert (len(stub.asked), time.slept) == (1, [])


def test_missing_is_not_asked_again() -> None:
    store, stub, _ = retrying(ChunkMissingError("not here"))
    with pytest.raises(ChunkMissingError):
        store.get(WANTED)
    assert len(stub.asked) == 1


def test_a_corrupt_answer_is_read_again_at_once_but_only_once() -> None:
    store, stub, time = retrying(CORRUPT)
    assert store.get(WANTED) == CHUNKS
    assert time.slept == []
    store, stub, _ = retrying(CORRUPT, CORRUPT)
    with pytest.raises(ChunkCorruptError):
        store.get(WANTED)
    assert len(stub.asked) == 2


def test_retry_after_is_honoured_up_to_its_cap() -> None:
    store, _, time = retrying(SourceUnavailableError("429", retry_after=3), jitter=0)
    store.get(WANTED)
    assert time.slept == [3]
    store, _, time = retrying(SourceUnavailableError("429", retry_after=3600), jitter=0)
    store.get(WANTED)
    assert time.slept == [RetryPolicy().longest_retry_after]


def test_no_pause_begins_that_would_end_after_the_deadline() -> None:
    store, stub, time = retrying(
        *[SourceUnavailableError("429", retry_after=15) for _ in range(9)],
        policy=RetryPolicy(attempts=9, deadline=40),
        jitter=0,
    )
    with pytest.raises(SourceUnavailableError):
        store.get(WANTED)
    assert (time.slept, len(stub.asked)) == ([15, 15], 3)


@given(st.integers(1, 10**6), st.floats(0, 1, exclude_max=True), st.none() | st.floats(-10, 1e9))
def test_a_pause_is_never_negative_nor_longer_than_both_caps(attempt: int, jitter: float, retry_after: float | None) -> None:
    policy = RetryPolicy()
    assert 0 <= policy.pause(attempt, retry_after, jitter) <= policy.longest_pause + policy.longest_retry_after
