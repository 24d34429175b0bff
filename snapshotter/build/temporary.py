"""What is said where temporary data cannot be kept."""

from __future__ import annotations

import tempfile
from pathlib import Path

from snapshotter.errors import FailedPreconditionError


def no_room(error: OSError, directory: Path | None) -> FailedPreconditionError:
    """What to raise where temporary data cannot be kept in `directory`."""
    place = directory or tempfile.gettempdir()
    return FailedPreconditionError(
        f"cannot keep temporary data in {place}: {error.strerror}; name another directory with TMPDIR"
    )
