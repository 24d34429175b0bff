"""How a failed call ends, in every service of the daemon: the code for a category of error, a message that fits, a log line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Never

import grpc

from snapshotter import errors

_LOG = logging.getLogger(__name__)

_MESSAGE_MAX = 6000
"""Longest message of an error, in bytes as it travels: percent-encoded in a header. Of all headers together gRPC takes 8 KiB;
what has more is refused with RESOURCE_EXHAUSTED, the likelier the longer it is."""


def code_of(error: errors.PuzzlefsError) -> grpc.StatusCode:
    """The gRPC code for a category of error.

    containerd 1.6 takes every code that it does not know for UNKNOWN, so only those are used that it does: data that does
    not match its digest, or a kernel that cannot, is a precondition that does not hold, which no client tries again.
    """
    match error:
        case errors.NotFoundError():
            return grpc.StatusCode.NOT_FOUND
        case errors.AlreadyExistsError():
            return grpc.StatusCode.ALREADY_EXISTS
        case errors.InvalidError():
            return grpc.StatusCode.INVALID_ARGUMENT
        case errors.FailedPreconditionError() | errors.CorruptError() | errors.UnsupportedError():
            return grpc.StatusCode.FAILED_PRECONDITION
        case errors.UnavailableError():
            return grpc.StatusCode.UNAVAILABLE
        case _:
            return grpc.StatusCode.INTERNAL


@contextmanager
def answering(context: grpc.ServicerContext, call: str, key: str) -> Iterator[None]:
    """End the call with the code that belongs to what the block raises."""
    try:
        yield
    except errors.PuzzlefsError as error:
        code = code_of(error)
        # What exists already, or not, is how clients ask; the rest is worth a line.
        quiet = code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS)
        _LOG.log(logging.DEBUG if quiet else logging.WARNING, "%s %s: %s: %s", call, key[:200], code.name, error)
        _abort(context, code, str(error))
    except Exception as error:
        _LOG.exception("%s %s failed unexpectedly", call, key[:200])
        _abort(
            context, grpc.StatusCode.INTERNAL, f"{call} failed unexpectedly ({type(error).__name__}), see the snapshotter's log"
        )


def _abort(context: grpc.ServicerContext, code: grpc.StatusCode, message: str) -> Never:
    context.abort(code, fitting(message))
    raise AssertionError  # abort() always raises


def fitting(message: str) -> str:
    """`message`, cut where it would not fit a header."""
    size = 0
    for position, character in enumerate(message):
        size += 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode(errors="replace"))
        if size > _MESSAGE_MAX:
            return message[:position] + "…"
    return message
