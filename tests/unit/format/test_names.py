"""What names lead to is counted as if every one were kept."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from snapshotter.format.names import Names

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
