"""The ``-o`` list."""

from __future__ import annotations

import pytest

from snapshotter.errors import InvalidError
from snapshotter.mount.options import parse_options


def test_defaults_and_choices() -> None:
    assert parse_options([], "oci:tag") == {"ro", "default_permissions", "subtype=puzzlefs", "fsname=oci:tag"}
    chosen = parse_options(["allow_other,nodev", "fsname=mine", "", "subtype=x"], "oci:tag")
    assert chosen == {"ro", "default_permissions", "allow_other", "nodev", "fsname=mine", "subtype=x"}


def test_a_name_that_the_list_cannot_hold_is_changed() -> None:
    assert "fsname=a_b_c" in parse_options([], "a,b\\c")


@pytest.mark.parametrize("text", ["bogus", "rw", "fsname=", "fsname=a\\b", "ro=1", "fd=3", "allow_other,allow_root"])
def test_what_is_unknown_or_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        parse_options([text], "x")
