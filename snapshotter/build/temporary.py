"""What is said where temporary data cannot be kept."""

from __future__ import annotations

import tempfile
from pathlib import Path

from snapshotter.errors import FailedPreconditionError


def no_room(error: OSError, directory: Path | None) -> FailedPreconditionError:
    """What to raise where temporary data cannot be kept in `directory`, or, if it is None, where the system keeps such data."""
    if directory is None:
        place, help_with = tempfile.gettempdir(), "name another directory with TMPDIR"
    else:
        place, help_with = str(directory), "that directory must be there, be writable and have room"
    return FailedPreconditionError(f"cannot keep temporary data in {place}: {error.strerror}; {help_with}")
