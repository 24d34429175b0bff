"""What names lead to is counted as if every one were kept."""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from snapshotter.format.digest import sha256
from snapshotter.format.model import ROOT_INO, DirEntry, FileChunk, Inode, Kind, RootfsContent
from snapshotter.format.names import Names
from snapshotter.format.rootfs import Rootfs
from snapshotter.format.writer import encode

_numbers = st.one_of(
    st.lists(st.integers(1, 30), max_size=8),
    st.builds(lambda first, count: list(range(first, first + count)), st.integers(1, 30), st.integers(0, 8)),
)


@given(st.lists(_numbers, max_size=8), st.lists(st.integers(1, 40)))
def test_counts_are_those_of_all_names(directories: list[list[int]], wanted: list[int]) -> None:
    names = Names()
    every: Counter[int] = Counter()
    below = {}
    for owner, numbers in enumerate(directories):
        names.add(owner, numbers)
        every.update(numbers)
        found = sum(number in wanted for number in numbers)
        if found:
            below[owner] = found
    assert names.several() == {number: count for number, count in every.items() if count > 1}
    assert names.counts(wanted) == below
    for number in range(50):
        owners = [owner for owner, numbers in enumerate(directories) if number in numbers]
        assert names.owner(number) == min(owners, default=None)


def test_a_survey_keeps_little_of_what_it_sees() -> None:
    chunk = FileChunk(sha256(b""), 0, 9)

    def peak(directories: int) -> int:
        first = ROOT_INO + directories + 1
        inodes = [Inode(ROOT_INO, Kind.DIR, entries=[DirEntry(2 + place, b"%d" % place) for place in range(directories)])]
        for place in range(directories):
            entries = [DirEntry(first + place * 50 + name, b"%d" % name) for name in range(50)]
            inodes.append(Inode(2 + place, Kind.DIR, entries=entries))
        inodes += [Inode(first + number, Kind.FILE, chunks=[chunk]) for number in range(50 * directories)]
        rootfs = Rootfs.open(encode(RootfsContent([inodes])))
        del inodes
        gc.collect()
        tracemalloc.start()
        assert rootfs.survey().inodes == 1 + 51 * directories
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    # 16 bytes an inode, in tables that may have room for more, and what a directory with subdirectories takes.
    assert peak(600) - peak(200) < 400 * 51 * 24
