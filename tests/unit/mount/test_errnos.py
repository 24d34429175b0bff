"""Errors as errnos: every category has one, on purpose."""

from __future__ import annotations

import errno
import inspect

import pytest

from snapshotter import errors
from snapshotter.chunkstore.base import ChunkCorruptError, ChunkMissingError, SourceUnavailableError
from snapshotter.format.digest import Digest
from snapshotter.mount.errnos import errno_of

EXPECTED = {
    errors.NotFoundError: errno.ENOENT,
    errors.AlreadyExistsError: errno.EEXIST,
    errors.InvalidError: errno.EINVAL,
    errors.FailedPreconditionError: errno.EBUSY,
    errors.UnavailableError: errno.EIO,
    errors.CorruptError: errno.EIO,
    errors.UnsupportedError: errno.EOPNOTSUPP,
}


def test_every_category_is_mapped() -> None:
    categories = {
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.PuzzlefsError) and kind is not errors.PuzzlefsError
    }
    assert categories == set(EXPECTED)
    assert {kind: errno_of(kind("x")) for kind in categories} == EXPECTED


@pytest.mark.parametrize(
    "error",
    [
        ChunkMissingError("a file whose chunk is nowhere exists all the same"),
        ChunkCorruptError(Digest(bytes(32)), "here", "because"),
        SourceUnavailableError("gone"),
        OSError(errno.ENOSPC, "our cache's trouble, not the file's"),
        ValueError("a mistake of ours"),
        errors.PuzzlefsError("no category"),
        KeyboardInterrupt(),
    ],
)
def test_all_else_is_eio(error: BaseException) -> None:
    assert errno_of(error) == errno.EIO
