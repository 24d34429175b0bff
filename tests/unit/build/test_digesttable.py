"""A table of digests says what a dictionary would say."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from snapshotter.build.digesttable import DigestTable
from snapshotter.format.digest import sha256


@given(st.lists(st.integers(0, 300), max_size=600))
def test_each_digest_once_numbered_as_it_came(names: list[int]) -> None:
    table = DigestTable()
    numbers: dict[bytes, int] = {}
    for name in names:
        digest = sha256(b"%d" % name)
        assert table.add(digest) == (digest not in numbers)
        numbers.setdefault(digest, len(numbers))
    assert table == list(numbers)
    assert len(table) == len(numbers)
    for name in range(301):
        digest = sha256(b"%d" % name)
        assert table.find(digest) == numbers.get(digest)
        assert (digest in table) == (digest in numbers)


def test_it_is_not_equal_to_what_has_another_order() -> None:
    first, second = sha256(b"1"), sha256(b"2")
    assert DigestTable([first, second]) != DigestTable([second, first])
