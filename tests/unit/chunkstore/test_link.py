"""What requests cost, from what they have cost."""

from __future__ import annotations

import pytest

from snapshotter.chunkstore.link import WINDOW_MAX, Link, scaled
from snapshotter.chunkstore.planner import Limits

KIB = 1024


def link(round_trip: float, rate: float) -> Link:
    made = Link()
    for _ in range(3):
        made.note(20 * KIB, round_trip + 20 * KIB / rate)
        made.note(512 * KIB, round_trip + 512 * KIB / rate)
    return made


def test_nothing_is_changed_before_anything_is_known() -> None:
    assert Link().worth() is None
    assert scaled(Limits(), None) == Limits()


def test_a_near_link_reads_little_ahead() -> None:
    assert scaled(Limits(), link(0.002, 25e6).worth()).window_first == 0
    assert scaled(Limits(), link(0.008, 25e6).worth()).window_first == 0


def test_a_far_link_reads_more_ahead_and_over_larger_gaps() -> None:
    limits = scaled(Limits(), link(0.05, 25e6).worth())
    assert limits.window_first == limits.gap
    assert 128 * KIB < limits.window_first <= 256 * KIB


def test_a_slow_link_reads_little_ahead_however_far() -> None:
    assert scaled(Limits(), link(0.01, 2.5e6).worth()) == Limits()


def test_a_lying_source_cannot_ask_for_more_than_the_most() -> None:
    assert scaled(Limits(), 1e12).window_first == WINDOW_MAX


def test_a_busy_link_is_judged_by_its_best_moment() -> None:
    made = link(0.002, 25e6)
    for _ in range(10):
        made.note(20 * KIB, 0.3)
    assert made.worth() == pytest.approx(link(0.002, 25e6).worth(), rel=0.01)


def test_one_lucky_request_changes_nothing() -> None:
    """A large request that took no longer than a small one would make the link look endless."""
    fair, lucky = link(0.01, 25e6), link(0.01, 25e6)
    lucky.note(1 << 20, 0.01)
    assert lucky.worth() == pytest.approx(fair.worth())
