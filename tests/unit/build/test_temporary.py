"""What is said where temporary data cannot be kept names what helps."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from snapshotter.build.temporary import no_room

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_where_the_system_keeps_it_another_place_can_be_named() -> None:
    said = str(no_room(FULL, None))
    assert tempfile.gettempdir() in said
    assert "TMPDIR" in said


def test_a_directory_that_was_named_is_what_has_to_be_mended() -> None:
    said = str(no_room(FULL, Path("/srv/work")))
    assert "/srv/work: No space left on device" in said
    assert "TMPDIR" not in said, "TMPDIR changes nothing where a directory was named"
