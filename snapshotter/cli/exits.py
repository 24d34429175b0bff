"""Exit statuses: one per category of failure, the same for every command.

====  ==========================================================================
0     done
1     an unexpected failure: a defect of this program
2     wrong usage, arguments or configuration; a request that can never succeed
3     something named does not exist
4     something needed cannot be reached now; trying again may help
5     data is corrupt: it does not match its digest or breaks a rule of its format
6     what was to be made exists already
7     the state of the system does not allow it
8     this machine, kernel or containerd cannot do it
130   interrupted
====  ==========================================================================
"""

from __future__ import annotations

from snapshotter.errors import (
    AlreadyExistsError,
    CorruptError,
    FailedPreconditionError,
    InvalidError,
    NotFoundError,
    PuzzlefsError,
    UnavailableError,
    UnsupportedError,
)
from snapshotter.format.printable import printable

UNEXPECTED = 1
USAGE = 2
INTERRUPTED = 130

_STATUSES: dict[type[PuzzlefsError], int] = {
    InvalidError: USAGE,
    NotFoundError: 3,
    UnavailableError: 4,
    CorruptError: 5,
    AlreadyExistsError: 6,
    FailedPreconditionError: 7,
    UnsupportedError: 8,
}


def status(error: BaseException) -> int:
    """The exit status for `error`."""
    for category, number in _STATUSES.items():
        if isinstance(error, category):
            return number
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else UNEXPECTED


def one_line(error: BaseException) -> str:
    """`error` as the single line that is printed: control characters, which could come from an image, are shown escaped."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return printable(text)
