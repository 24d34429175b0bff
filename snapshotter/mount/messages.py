"""JSON messages over a SEQPACKET socket, descriptors beside them: between the daemon, the processes that outlive it, and the
command that has it pull.

One message is one packet. Both ends are ours, but a worker handles hostile images all day: what comes is checked like any
input. Imports next to nothing, since the keeper of descriptors is to be small.
"""

from __future__ import annotations

import array
import json
import os
import socket
from typing import Any

from snapshotter import errors
from snapshotter.errors import InvalidError, PuzzlefsError

MESSAGE_MAX = 64 << 10
"""Longest message in bytes; a layer's description with all its packs takes about 5 KiB."""
DESCRIPTORS_MAX = 8
"""Most descriptors beside one message."""

Message = dict[str, Any]


def send(sock: socket.socket, message: Message, fds: tuple[int, ...] = ()) -> None:
    """Send one message, with descriptors beside it, which stay the sender's.

    Raises:
        InvalidError: it is longer than `MESSAGE_MAX`.
        OSError: the other end is gone.
    """
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MESSAGE_MAX:
        raise InvalidError(f"a message of {len(data)} bytes to or from the daemon, at most {MESSAGE_MAX} are allowed")
    if fds:
        socket.send_fds(sock, [data], list(fds))
    else:
        sock.sendall(data)


def receive(sock: socket.socket) -> tuple[Message, list[int]] | None:
    """One message and the descriptors that came with it, which are the caller's to close; None when the other end is gone.

    Raises:
        InvalidError: what came is no message. Its descriptors are closed.
    """
    # Not socket.recv_fds: without MSG_CMSG_CLOEXEC a descriptor would leak into a child started at the wrong moment.
    try:
        data, ancillary, flags, _ = sock.recvmsg(MESSAGE_MAX, socket.CMSG_SPACE(4 * DESCRIPTORS_MAX), socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None
    fds = descriptors(ancillary)
    try:
        if not data and not fds:
            return None
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise InvalidError("a message to or from the daemon was cut")
        message = json.loads(data)
        if not isinstance(message, dict):
            raise InvalidError("a message to or from the daemon is no object")
    except (ValueError, InvalidError, RecursionError) as error:
        close_all(fds)
        raise InvalidError(f"malformed message to or from the daemon: {error}") from error
    return message, fds


def descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors in what recvmsg(2) gave beside the data."""
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return list(fds)


def close_all(fds: list[int]) -> None:
    """Close what came with a message and is not wanted."""
    for fd in fds:
        os.close(fd)


def typed(message: Message, key: str, kind: type) -> Any:
    """The field `key`, which must be a `kind`.

    Raises:
        InvalidError: it is not.
    """
    value = message.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InvalidError(f"{key} of a message to or from the daemon is {value!r}, not {kind.__name__}")
    return value


def error_message(seq: object, error: Exception) -> Message:
    """What answers a request that failed, under the category of its error."""
    category = next((kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__), type(error))
    return {"re": seq, "error": str(error)[:4096], "type": category.__name__}


def parse_error(message: Message) -> PuzzlefsError:
    """The error that an answer carries, in its category; `InvalidError` where that is none of ours."""
    kind = getattr(errors, str(message.get("type")), None)
    text = str(message.get("error"))
    if isinstance(kind, type) and issubclass(kind, PuzzlefsError) and kind is not PuzzlefsError:
        return kind(text)
    return InvalidError(f"{message.get('type')}: {text}")
