"""When sleep is kept off: in the middle of a burst, not after it, and for two seconds of any thirty at most."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from snapshotter.mount.vigil import BURST, LINGER_NS, RATION_NS, REFILL, WORTH_NS, Vigil

STEP = 50_000
SECOND = 10**9


def lively(vigil: Vigil, now: int, count: int) -> tuple[int, bool]:
    """So many lively requests; when the last one was, and what was said after it."""
    said = False
    for _ in range(count):
        now += STEP
        said = vigil.step(now, lively=True)
    return now, said


def test_a_burst_begins_after_some_requests_and_ends_a_moment_after_the_last() -> None:
    vigil = Vigil()
    now, said = lively(vigil, 0, BURST - 1)
    assert not said
    now, said = lively(vigil, now, 1)
    assert said
    assert vigil.step(now + LINGER_NS, lively=False)
    assert not vigil.step(now + LINGER_NS + 1, lively=False)


def test_a_slow_request_within_a_burst_does_not_end_it() -> None:
    vigil = Vigil()
    now, _ = lively(vigil, 0, BURST)
    assert vigil.step(now + LINGER_NS // 2, lively=False)
    now, said = lively(vigil, now + LINGER_NS // 2, 1)
    assert said
    assert vigil.step(now + LINGER_NS, lively=False)


def test_requests_now_and_then_are_no_burst() -> None:
    vigil = Vigil()
    now = 0
    for _ in range(BURST * 3):
        now, said = lively(vigil, now, BURST // 2)
        assert not said
        now += LINGER_NS + 1
        assert not vigil.step(now, lively=False)


def test_after_the_ration_nothing_until_there_is_some_again() -> None:
    vigil = Vigil()
    now, said = lively(vigil, 0, BURST)
    begun = now
    while said:
        now, said = lively(vigil, now, 1)
    assert now - begun == RATION_NS
    end = now
    while not said:
        now, said = lively(vigil, now, 1)
    assert WORTH_NS * REFILL <= now - end <= WORTH_NS * REFILL + BURST * STEP


def test_unused_it_is_whole_again() -> None:
    vigil = Vigil()
    now, said = lively(vigil, 0, BURST)
    while said:
        now, said = lively(vigil, now, 1)
    begun, said = lively(vigil, now + RATION_NS * REFILL * 2, BURST)
    assert said
    now = begun
    while said:
        now, said = lively(vigil, now, 1)
    assert now - begun == RATION_NS


def kept_off(steps: Iterable[tuple[int, bool]]) -> Sequence[tuple[int, int]]:
    """The spans in which sleep is kept off by a caller that steps at these distances, and otherwise each millisecond."""
    vigil = Vigil()
    spans = []
    now = begun = 0
    said = False

    def step(at: int, is_lively: bool) -> None:
        nonlocal said, begun
        was, said = said, vigil.step(at, lively=is_lively)
        if said and not was:
            begun = at
        if was and not said:
            spans.append((begun, at))

    for distance, is_lively in steps:
        next_one = now + distance
        while said and now + SECOND // 1000 < next_one:
            now += SECOND // 1000
            step(now, False)
        now = next_one
        step(now, is_lively)
    return [*spans, (begun, now)] if said else spans


BURSTS = st.tuples(st.integers(1, 40_000), st.integers(1, 40 * SECOND))
"""How many lively requests, and the pause after them."""


@given(st.lists(BURSTS, min_size=1, max_size=6))
def test_two_seconds_of_any_thirty_at_most(bursts: Sequence[tuple[int, int]]) -> None:
    steps = [step for count, pause in bursts for step in [(100_000, True)] * count + [(pause, False)]]
    spans = kept_off(steps)
    slack = len(spans) * SECOND // 1000  # it is looked at each millisecond
    for start, _ in spans:
        within = sum(min(end, start + 30 * SECOND) - begin for begin, end in spans if start <= begin < start + 30 * SECOND)
        assert within <= 2 * SECOND + slack
