"""Text from outside, on one line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.format.printable import printable


@given(st.text())
def test_is_printable(text: str) -> None:
    assert printable(text).isprintable()


@given(st.text().filter(str.isprintable))
def test_leaves_what_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\nb", r"a\nb"), ("\x1b[31m", r"\x1b[31m"), ("\u202e", r"\u202e"), ("\udcff", r"\udcff"), ("\r\t", r"\r\t")],
)
def test_shows_the_rest(text: str, shown: str) -> None:
    assert printable(text) == shown
