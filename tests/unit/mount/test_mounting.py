"""The mount table."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapshotter.mount.mounting import MountInfo, parse_mountinfo


def test_a_line_of_the_mount_table() -> None:
    line = rb"43 27 0:39 / /var/a\040b\134c\011d ro,relatime shared:1 - fuse.puzzlefs sha256:1\040x ro,user_id=0"
    assert parse_mountinfo(line) == MountInfo("0:39", Path("/var/a b\\c\td"), "fuse.puzzlefs", "sha256:1 x")


@pytest.mark.parametrize("line", [b"", b"1 2 3", b"1 2 0:3 / /a rw - tmpfs", b" - a b c"])
def test_what_is_no_line_of_it(line: bytes) -> None:
    assert parse_mountinfo(line) is None
