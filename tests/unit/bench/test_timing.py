from __future__ import annotations

import pytest

from bench.timing import Contestant, Timing, side_by_side


def test_contestants_take_turns_and_the_first_changes() -> None:
    order: list[str] = []
    contestants = [Contestant(name, lambda name=name: order.append(name), lambda: order.append("-")) for name in "abc"]  # type: ignore[misc]
    timings = side_by_side(contestants, 3)
    assert "".join(order) == "-a-b-c-b-c-a-c-a-b"
    assert {name: len(timing.seconds) for name, timing in timings.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_contestant_may_measure_itself() -> None:
    seconds = iter([3.0, 1.0, 2.0])
    assert side_by_side([Contestant("x", lambda: next(seconds))], 3)["x"] == Timing([3.0, 1.0, 2.0])


def test_the_ratio_is_that_of_the_rounds() -> None:
    mine, theirs = Timing([2.0, 20.0, 3.0]), Timing([1.0, 10.0, 1.0])
    assert mine.median == 3.0
    assert mine.ratio(theirs) == pytest.approx(2.0)
