"""What may be given away in a time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from snapshotter.daemon.allowance import Allowance


def test_a_second_may_be_saved_up_and_no_more() -> None:
    now = [0.0]
    allowance = Allowance(100, clock=lambda: now[0])
    assert allowance.take(100)
    assert not allowance.take(1)
    now[0] = 60.0
    assert allowance.take(100)
    assert not allowance.take(1)


def test_what_is_larger_than_a_second_allows_goes_and_is_paid_back() -> None:
    now = [0.0]
    allowance = Allowance(100, clock=lambda: now[0])
    assert allowance.take(350)
    for now[0], allowed in ((1.0, False), (2.5, False), (2.6, True)):
        assert allowance.take(1) == allowed


@given(st.integers(1, 1000), st.lists(st.tuples(st.floats(0, 5), st.integers(1, 5000)), max_size=50))
def test_never_more_than_the_rate_and_two_of_the_largest(rate: int, asked: list[tuple[float, int]]) -> None:
    now = [0.0]
    allowance = Allowance(rate, clock=lambda: now[0])
    given_away = 0
    for later, size in asked:
        now[0] += later
        given_away += size if allowance.take(size) else 0
    largest = max((size for _, size in asked), default=0)
    assert given_away <= rate * (now[0] + 1) + largest + 1e-6
