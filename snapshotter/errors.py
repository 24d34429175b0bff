"""The categories of failure, from which exit codes, gRPC codes and errnos are derived.

A module raises the category that tells its caller what to do about the failure; what exactly went wrong stands in the
message: *what* failed, on *what*, *why*, and, where one can be named, *what to do*. Adapters (``cli.exits``,
``snapshots.service``, ``mount.session``) each map the categories in a single function.
"""

from __future__ import annotations


class PuzzlefsError(Exception):
    """Base of every error that this project raises on purpose. Never raised itself."""


class NotFoundError(PuzzlefsError):
    """What was asked for does not exist."""


class AlreadyExistsError(PuzzlefsError):
    """What was to be made is there already."""


class InvalidError(PuzzlefsError):
    """The request, argument or configuration is wrong; repeating it cannot help."""


class FailedPreconditionError(PuzzlefsError):
    """The request is right, but the state of the system does not allow it."""


class UnavailableError(PuzzlefsError):
    """Something that is needed cannot be reached now; the same request may succeed later."""


class CorruptError(PuzzlefsError):
    """Data does not match its digest, or breaks a rule of its format."""


class UnsupportedError(PuzzlefsError):
    """The request is understood but cannot be served here (kernel, file system, containerd's version)."""
