"""What an image says about when its files were changed."""

from __future__ import annotations

import pytest

from snapshotter.build import mtimes
from snapshotter.build.entries import Node
from snapshotter.errors import InvalidError
from snapshotter.format.model import Kind

TIMES = [(-5, 7), (0, 0), (1_000, 0), (1_000, 1), (2_000_000_000, 999_999_999)]


def tree() -> Node:
    root = Node(Kind.DIR, mtime=3_000, mtime_nsec=5)
    root.names()[b"d"] = below = Node(Kind.DIR, mtime=10)
    for number, (seconds, nanoseconds) in enumerate(TIMES):
        below.names()[b"%d" % number] = Node(Kind.FIFO, mtime=seconds, mtime_nsec=nanoseconds)
    return root


def times(root: Node) -> list[tuple[int, int]]:
    below = root.names()[b"d"]
    return [(node.mtime, node.mtime_nsec) for node in (root, below, *below.names().values())]


def after(name: str, **environment: str) -> list[tuple[int, int]]:
    root = tree()
    mtimes.policy(name, environment)(root)
    return times(root)


def test_kept() -> None:
    assert after("keep", SOURCE_DATE_EPOCH="nonsense") == times(tree())


def test_nothing_is_later_than_source_date_epoch() -> None:
    assert after("clamp", SOURCE_DATE_EPOCH="1000") == [(1000, 0), (10, 0), (-5, 7), (0, 0), (1000, 0), (1000, 0), (1000, 0)]


def test_zero_is_1970_for_everything() -> None:
    assert set(after("zero")) == {(0, 0)}


@pytest.mark.parametrize("value", [None, "", "-1", "1.5", "yesterday", " 1", "1" * 19])
def test_clamping_to_nothing_is_an_error(value: str | None) -> None:
    with pytest.raises(InvalidError, match="SOURCE_DATE_EPOCH"):
        mtimes.policy("clamp", {} if value is None else {"SOURCE_DATE_EPOCH": value})


def test_an_unknown_policy() -> None:
    with pytest.raises(InvalidError, match="choose one of keep, clamp, zero"):
        mtimes.policy("forget", {})
