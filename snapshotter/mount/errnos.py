"""Which errno a failure becomes at the kernel's border. One function, for both engines."""

from __future__ import annotations

import errno

from snapshotter.chunkstore.base import ChunkMissingError
from snapshotter.errors import (
    AlreadyExistsError,
    CorruptError,
    FailedPreconditionError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)

# A chunk that is nowhere to be had is a NotFoundError to its caller, but to read(2) the file exists and cannot be read: so
# it stands before its base class. The order matters, the first that matches counts.
_ERRNOS: tuple[tuple[type[BaseException], int], ...] = (
    (ChunkMissingError, errno.EIO),
    (CorruptError, errno.EIO),
    (UnavailableError, errno.EIO),
    (NotFoundError, errno.ENOENT),
    (AlreadyExistsError, errno.EEXIST),
    (InvalidError, errno.EINVAL),
    (FailedPreconditionError, errno.EBUSY),
    (UnsupportedError, errno.EOPNOTSUPP),
)


def errno_of(error: BaseException) -> int:
    """The (positive) errno that a caller of the file system sees for `error`.

    Whatever is not one of the project's categories is EIO, an `OSError` too: its errno tells of a file of ours (the cache
    is full, a socket is gone), and would be a lie about the file that was asked for.
    """
    for category, number in _ERRNOS:
        if isinstance(error, category):
            return number
    return errno.EIO
