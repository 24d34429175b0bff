"""The records of directories, made before they are asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import CorruptError
from snapshotter.format.model import DirEntry, Inode, Kind, RootfsContent
from snapshotter.format.rootfs import Rootfs
from snapshotter.format.writer import encode
from snapshotter.mount.listing import PENDING_MAX, Listing, Walk, records
from snapshotter.mount.tree import Tree

ROOT = 1


def tree_of(count: int) -> Tree:
    """A root with `count` names; every third inode is a directory, 2 is the first of them."""
    entries = [DirEntry(2 + number, b"%06d" % number) for number in range(count)]
    inodes = [Inode(2 + number, Kind.DIR if number % 3 == 0 else Kind.FILE) for number in range(count)]
    return Tree(Rootfs.open(encode(RootfsContent([[Inode(ROOT, Kind.DIR, entries=entries), *inodes]]))))


def read(made: Listing, single: list[bytes], size: int) -> bytes:
    """All that `made` gives in steps of `size` bytes, where a directory has the records `single`."""
    answer, cookie = b"", 0
    while step := made.take(cookie, size):
        answer += step
        while len(step) > 0:
            assert step.startswith(single[cookie])
            step = step[len(single[cookie]) :]
            cookie += 1
    return answer


@given(count=st.integers(0, 9), before=st.integers(0, 15), size=st.integers(200, 2000), kept=st.integers(1, 15))
def test_it_makes_no_difference_how_many_records_were_made_before(count: int, before: int, size: int, kept: int) -> None:
    tree = tree_of(count)
    single = list(records(tree, ROOT, 0, plus=True))
    made = Listing(tree, ROOT, kept_max=kept)
    for _ in range(before):
        made.extend()
    assert read(made, single, size) == b"".join(single)
    assert made.take(count + 2, size) == b"", "the end is the end, however often it is asked for"


def test_a_listing_knows_its_directories() -> None:
    made = Listing(tree_of(8), ROOT)
    assert made.directories == []
    while made.extend():
        pass
    assert made.directories == [2, 5, 8]


def test_no_more_records_are_kept_than_allowed() -> None:
    made = Listing(tree_of(20), ROOT, kept_max=6)
    assert [made.extend() for _ in range(8)] == [True] * 6 + [False] * 2


def test_what_is_no_directory_has_no_records() -> None:
    with pytest.raises(CorruptError, match="no directory"):
        Listing(tree_of(3), 3).extend()


def test_a_walk_goes_into_each_directory_and_then_on() -> None:
    walk = Walk()
    assert walk.take() is None
    foreseen = []
    for ino, directories in ((1, [10, 20]), (10, [11, 12]), (11, []), (12, []), (20, [])):
        walk.listed(ino, directories)
        foreseen.append(walk.take())
    assert foreseen == [10, 11, 12, 20, None]
    walk.listed(1, [10])
    assert [walk.take(), walk.take()] == [10, None], "told once"


def test_a_walk_that_leaves_some_out_or_begins_elsewhere_is_followed() -> None:
    walk = Walk()
    walk.listed(1, [10, 20, 30])
    walk.listed(20, [21])
    assert walk.take() == 21
    walk.listed(30, [])
    assert walk.take() is None
    walk.listed(7, [8])
    walk.listed(99, [100])
    assert walk.take() == 100


def test_what_a_walk_has_before_it_is_bounded() -> None:
    walk = Walk()
    walk.listed(1, range(2, PENDING_MAX + 100))
    assert walk.take() == 2
    for ino in range(2, PENDING_MAX + 2):
        walk.listed(ino, [])
    assert walk.take() is None, "the last ones were forgotten"
