"""What is evicted, in which order, and what is kept for the containers that read it."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from snapshotter.chunkstore.reserve import RECENTLY, CachedFile, Cap, Census

NOW = 1_000_000.0


def written(name: str, size: int, ago: float) -> CachedFile:
    """A file that came `ago` seconds ago and that no container has read."""
    return CachedFile(name, size, NOW - ago, 0.0)


def read(name: str, size: int, ago: float) -> CachedFile:
    """A file that a container read `ago` seconds ago."""
    return CachedFile(name, size, NOW - ago, NOW - ago)


def evicted(files: Sequence[CachedFile], cap: Cap, batch: int = 4096) -> list[CachedFile]:
    """What goes, in this order, over as many censuses as it takes."""
    left, gone = list(files), list[CachedFile]()
    while True:
        census = Census(cap, NOW, batch)
        for file in left:
            census.add(file)
        victims = list(census.victims())
        if not victims:
            return gone
        gone += victims
        left = [file for file in left if file not in victims]


def names(files: Sequence[CachedFile]) -> list[str]:
    return [file.path for file in files]


def test_below_the_goal_nothing_goes() -> None:
    assert evicted([written("a", 50, 10), read("b", 40, 10)], Cap(100)) == []


def test_what_a_container_has_just_read_outlives_a_pull_that_came_after_it() -> None:
    pulled = [written(f"pulled-{number}", 10, 5) for number in range(9)]
    assert names(evicted([read("read", 20, 60), *pulled], Cap(100))) == ["pulled-0", "pulled-1"]


def test_without_a_reserve_what_was_used_longest_ago_goes() -> None:
    pulled = [written(f"pulled-{number}", 10, 5) for number in range(9)]
    assert names(evicted([read("read", 20, 60), *pulled], Cap(100, reserve=0.0))) == ["read"]


def test_what_does_not_fit_into_the_reserve_takes_its_turn_with_the_rest() -> None:
    files = [
        read("oldest", 20, 90),
        written("old", 20, 80),
        read("newer", 20, 70),
        written("new", 20, 60),
        read("newest", 20, 50),
    ]
    assert names(evicted(files, Cap(40, reserve=0.5, low_water=1.0))) == ["oldest", "old", "newer"]


def test_the_reserved_goes_when_nothing_else_is_left_read_longest_ago_first() -> None:
    files = [read("a", 20, 90), read("b", 20, 80), written("c", 20, 1)]
    assert names(evicted(files, Cap(50, reserve=1.0, low_water=0.5))) == ["c", "a"]


def test_what_was_read_long_ago_is_like_what_nobody_has_read() -> None:
    files = [written("a", 20, RECENTLY), read("b", 20, RECENTLY + 1)]
    assert names(evicted(files, Cap(20, low_water=1.0))) == ["b"]


@st.composite
def cached(draw: st.DrawFn) -> list[CachedFile]:
    """Files, no two of which were used or read at the same moment; some were used since a container has read them."""
    rows = draw(
        st.lists(
            st.tuples(st.integers(1, 50), st.integers(1, int(2 * RECENTLY)), st.booleans()),
            max_size=40,
            unique_by=lambda row: row[1],
        )
    )
    return [
        CachedFile(f"{number:02}", size, NOW - ago + 0.5, NOW - ago if was_read else 0.0)
        for number, (size, ago, was_read) in enumerate(rows)
    ]


caps = st.builds(Cap, st.integers(0, 1500), st.floats(0, 1), st.floats(0.5, 1))


def split(files: Sequence[CachedFile], cap: Cap) -> tuple[list[CachedFile], list[CachedFile]]:
    """Those that are reserved and all others, as the rule says it and without regard to memory."""
    reserved, room = list[CachedFile](), cap.reserved_bytes
    for file in sorted(files, key=lambda file: (file.read, file), reverse=True):
        if NOW - file.read >= RECENTLY or file.size > room:
            break
        reserved.append(file)
        room -= file.size
    return reserved, [file for file in files if file not in reserved]


@given(cached(), caps)
def test_it_comes_down_to_the_goal_and_not_a_file_further(files: list[CachedFile], cap: Cap) -> None:
    gone = evicted(files, cap)
    left = sum(file.size for file in files) - sum(file.size for file in gone)
    assert left <= cap.goal
    assert not gone or left + gone[-1].size > cap.goal


@given(cached(), caps)
def test_the_reserved_goes_last(files: list[CachedFile], cap: Cap) -> None:
    reserved, others = split(files, cap)
    gone = evicted(files, cap)
    assert set(gone) >= set(others) or not set(gone) & set(reserved)


@given(cached(), caps)
def test_either_kind_goes_in_the_order_of_its_last_use(files: list[CachedFile], cap: Cap) -> None:
    reserved, others = split(files, cap)
    gone = evicted(files, cap)

    def last(file: CachedFile) -> float:
        return file.read if NOW - file.read < RECENTLY else file.used

    for kind in (reserved, others):
        went = [last(file) for file in gone if file in kind]
        stayed = [last(file) for file in kind if file not in gone]
        assert went == sorted(went)
        assert not went or not stayed or went[-1] <= min(stayed)


@given(cached(), caps, st.integers(1, 5))
def test_how_many_files_a_census_remembers_makes_no_difference(files: list[CachedFile], cap: Cap, batch: int) -> None:
    assert evicted(files, cap, batch) == evicted(files, cap)
