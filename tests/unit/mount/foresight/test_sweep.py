"""What a reader of all files comes to is brought before it does."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest

from snapshotter.format.model import DirEntry, Inode, Kind, RootfsContent
from snapshotter.format.rootfs import Rootfs
from snapshotter.format.writer import encode
from snapshotter.mount.foresight import sweep
from snapshotter.mount.foresight.places import Places
from snapshotter.mount.foresight.sweep import BULK, GROWTH, HORIZON, IDLE, LOST, WINDOW_FIRST, WINDOW_MAX, Sweep, Window, walk
from snapshotter.mount.tree import Tree
from tests.support.foresight import Foreseeing, make_tree, names

READER = 4711
FILE = 100_000
MIB = 1 << 20


def content(count: int, size: int = FILE) -> dict[str, bytes]:
    """`count` files in directories of ten."""
    return {f"d{number // 10:02}/{number:04}": random.Random(number).randbytes(size) for number in range(count)}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Way:
    """A sweep through `files` from the first one on, and what it expects."""

    def __init__(self, files: Mapping[str, bytes], first: str | None = None) -> None:
        self.files = files
        self.tree, self.inos = make_tree(files)
        self.store = Foreseeing(files)
        self.clock = Clock()
        self.sweep = Sweep(self.tree, Places(self.tree), self.store, READER, self.inos[first or min(files)], self.clock)

    def at(self, path: str, offset: int = 0, reader: int = READER) -> bool:
        return self.sweep.at(reader, self.inos[path], offset)

    def step(self) -> list[str]:
        """The files that a step expects."""
        self.store.expected.clear()
        self.sweep.step()
        return names(self.files, self.store.expected)


def size(paths: list[str]) -> int:
    return len(paths) * FILE


class TestWalk:
    FILES: Mapping[str, bytes] = dict.fromkeys(("a/1", "a/m/2", "a/m/n/3", "a/z", "b/4", "c"), b"x")

    def after(self, path: str) -> list[str]:
        tree, inos = make_tree(self.FILES)
        found = [ino for ino in walk(tree, Places(tree), inos[path]) if ino is not None]
        return [path for ino in found for path, number in inos.items() if number == ino]

    def test_directories_are_entered_where_they_are_listed(self) -> None:
        assert self.after("a/1") == ["a/m/2", "a/m/n/3", "a/z", "b/4", "c"]

    def test_it_goes_on_above_where_a_directory_ends(self) -> None:
        assert self.after("a/m/n/3") == ["a/z", "b/4", "c"]
        assert self.after("c") == []

    def test_of_what_has_no_place_nothing_is_known(self) -> None:
        tree, _ = make_tree(self.FILES)
        assert list(walk(tree, Places(tree), 99999)) == []

    def test_directories_that_are_in_each_other_do_not_hold_it_up(self) -> None:
        entries = {1: [(2, b"d"), (4, b"f")], 2: [(3, b"e")], 3: [(2, b"d")]}
        inodes = [Inode(ino, Kind.DIR, entries=[DirEntry(*entry) for entry in found]) for ino, found in entries.items()]
        tree = Tree(Rootfs.open(encode(RootfsContent([[*inodes, Inode(4, Kind.FILE)]]))))
        assert len(list(walk(tree, Places(tree), 4))) < 1000
        assert len(list(walk(tree, Places(tree), 3))) < 1000


class TestWindow:
    def test_it_grows_with_what_was_swept_between_its_bounds(self) -> None:
        assert Window(0, 0.0).size == WINDOW_FIRST
        assert Window(3 * MIB, 0.1).size == GROWTH * 3 * MIB
        assert Window(1 << 40, 1.0).size == WINDOW_MAX

    def test_it_is_what_the_reader_takes_a_while_for(self) -> None:
        assert Window(100 * MIB, 50.0).size == int(2 * MIB * HORIZON)
        assert Window(100 * MIB, 10000.0).size == WINDOW_FIRST


class TestSweep:
    def test_it_begins_with_the_file_that_is_read_and_goes_on_in_the_order_of_the_walk(self) -> None:
        files = content(100)
        way = Way(files, "d01/0015")
        expected = way.step()
        assert expected == [path for path in files if path >= "d01/0015"][: len(expected)]
        assert WINDOW_FIRST <= size(expected) < WINDOW_FIRST + 2 * FILE

    def test_more_is_due_once_half_of_it_is_read_and_is_told_once(self) -> None:
        files = content(100)
        way = Way(files)
        first = way.step()
        due = [path for path in files if way.at(path)]
        assert len(due) == 1
        assert first.index(due[0]) in range(2, 8)
        more = way.step()
        assert [*first, *(path for path in more if path not in first)] == list(files)[: len({*first, *more})]
        assert len(more) > len(first)

    def test_of_a_long_file_a_part_is_brought_and_the_rest_as_it_is_read(self) -> None:
        files = {"big": random.Random(1).randbytes(5 * MIB), "small": b"s" * 100}
        way = Way(files)
        assert way.step() == ["big"]
        assert len(way.store.expected) * 16384 <= WINDOW_FIRST + 16384
        assert not way.at("big", 100_000)
        assert way.at("big", 900_000)
        way.step()
        assert way.at("big", 4 * MIB)
        assert way.step() == ["big", "small"]
        assert not way.at("small", 0), "nothing is left"
        assert way.sweep.over

    def test_other_readers_do_not_move_it(self) -> None:
        way = Way(content(100))
        way.step()
        assert not any(way.at(path, reader=READER + 1) for path in way.files)
        assert not way.sweep.over

    def test_it_is_over_when_its_reader_reads_elsewhere_or_stops(self) -> None:
        way = Way(content(300))
        way.step()
        far = [path for path in way.files if path > "d15"][: LOST - 1]
        for path in far * 2:
            way.at(path)
            way.at(path, 50_000)
            if path == far[-1]:
                way.at("d00/0000")
        assert not way.sweep.over
        for path in [*far, far[0]]:
            way.at(path)
        assert way.sweep.over
        other = Way(content(200))
        other.step()
        other.clock.now = IDLE + 0.1
        assert other.sweep.over

    def test_the_mount_is_one_that_is_read_through_once_much_was_swept(self) -> None:
        files = content(200)
        way = Way(files)
        for number, path in enumerate(files):
            if way.at(path) or not number:
                way.step()
            if number * FILE < BULK:
                assert way.store.bulks == 0
        assert way.store.bulks == 1

    def test_what_breaks_a_rule_is_left_to_its_reader(self, monkeypatch: pytest.MonkeyPatch) -> None:
        files = content(10)
        way = Way(files)
        plan = Tree.plan
        broken = way.inos["d00/0003"]
        monkeypatch.setattr(Tree, "plan", lambda tree, ino, *rest: plan(tree, 1 if ino == broken else ino, *rest))
        assert way.step() == [path for path in files if path != "d00/0003"]

    def test_one_step_looks_at_a_bounded_number_of_entries(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sweep, "ENTRIES_MAX", 5)
        files = content(10)
        assert len(Way(files).step()) <= 5
