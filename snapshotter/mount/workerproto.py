"""What the daemon and a mount worker say to each other: JSON messages over a SEQPACKET socket, descriptors beside them.

One message is one packet. The daemon's requests carry a number, ``seq``, and are answered once each, in order; events come
unasked. Both ends are ours, but a worker handles hostile images all day: what it says is checked like any input.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from snapshotter import errors
from snapshotter.errors import InvalidError, PuzzlefsError
from snapshotter.mount.failures import FailureReport
from snapshotter.mount.wire import Negotiated

MESSAGE_MAX = 64 << 10
"""Longest message in bytes; a layer's description with all its packs takes about 5 KiB."""

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AddMount:
    """Serve the mount whose /dev/fuse descriptor comes with this.

    `mount_id` names it between the two; `name` is what a log line shows (a layer's digest, a container's image). `store` is
    handed to the worker's chunk store factory as it is. `takeover`: a worker that is gone served it before; `negotiated` is
    then what INIT agreed on (minor version, flags, the kernel's flags), if it came that far: what `Ready` said.
    """

    mount_id: str
    metadata: str
    name: str
    as_layer: bool = True
    takeover: bool = False
    negotiated: tuple[int, int, int] | None = None
    store: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ready:
    """INIT is done: from now on the mount answers. `refused` says why the kernel was turned away, if it was."""

    mount_id: str
    negotiated: tuple[int, int, int] | None
    refused: str | None = None

    @property
    def can_resend(self) -> bool:
        """Whether a killed server's requests can be had again from this kernel."""
        return self.negotiated is not None and Negotiated(*self.negotiated).can_resend


@dataclass(frozen=True, slots=True)
class Gone:
    """The mount was unmounted and its last user is gone."""

    mount_id: str


Event = Ready | Gone | FailureReport


def add_message(add: AddMount) -> Message:
    """The request for `add`."""
    return {"do": "add", **asdict(add)}


def parse_add(message: Message) -> AddMount:
    """The other direction of `add_message`.

    Raises:
        InvalidError: a field is missing or of the wrong type.
    """
    return AddMount(
        mount_id=_typed(message, "mount_id", str),
        metadata=_typed(message, "metadata", str),
        name=_typed(message, "name", str),
        as_layer=_typed(message, "as_layer", bool),
        takeover=_typed(message, "takeover", bool),
        negotiated=_negotiated(message),
        store=_typed(message, "store", dict),
    )


def event_message(event: Event) -> Message:
    """The message for `event`."""
    if isinstance(event, FailureReport):
        return {"event": "failure", **event._asdict()}
    return {"event": "ready" if isinstance(event, Ready) else "gone", **asdict(event)}


def parse_event(message: Message) -> Event:
    """The other direction of `event_message`.

    Raises:
        InvalidError: it is no event.
    """
    match message.get("event"):
        case "ready":
            refused = message.get("refused")
            return Ready(_typed(message, "mount_id", str), _negotiated(message), None if refused is None else str(refused))
        case "gone":
            return Gone(_typed(message, "mount_id", str))
        case "failure":
            texts = {key: _typed(message, key, str) for key in ("mount", "path", "error", "error_type")}
            numbers = {key: _typed(message, key, int) for key in ("ino", "offset", "length", "suppressed")}
            return FailureReport(**texts, **numbers)
        case other:
            raise InvalidError(f"unknown event {other!r}")


def error_message(seq: object, error: Exception) -> Message:
    """The answer to a request that failed, under the category of its error."""
    category = next((kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__), type(error))
    return {"re": seq, "error": str(error)[:4096], "type": category.__name__}


def parse_error(message: Message) -> PuzzlefsError:
    """The error that an answer carries, in its category; `InvalidError` where that is none of ours."""
    kind = getattr(errors, str(message.get("type")), None)
    text = str(message.get("error"))
    if isinstance(kind, type) and issubclass(kind, PuzzlefsError) and kind is not PuzzlefsError:
        return kind(text)
    return InvalidError(f"{message.get('type')}: {text}")


def send(sock: socket.socket, message: Message, fds: tuple[int, ...] = ()) -> None:
    """Send one message, with descriptors beside it, which stay the sender's.

    Raises:
        InvalidError: it is longer than `MESSAGE_MAX`.
        OSError: the other end is gone.
    """
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MESSAGE_MAX:
        raise InvalidError(f"a message of {len(data)} bytes to or from a mount worker, at most {MESSAGE_MAX} are allowed")
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
        data, ancillary, flags, _ = sock.recvmsg(MESSAGE_MAX, socket.CMSG_SPACE(4 * 4), socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    try:
        if not data and not fds:
            return None
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise InvalidError("a message between daemon and mount worker was cut")
        message = json.loads(data)
        if not isinstance(message, dict):
            raise InvalidError("a message between daemon and mount worker is no object")
    except (ValueError, InvalidError, RecursionError) as error:
        for fd in fds:
            os.close(fd)
        raise InvalidError(f"malformed message between daemon and mount worker: {error}") from error
    return message, list(fds)


def _typed(message: Message, key: str, kind: type) -> Any:
    value = message.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InvalidError(f"{key} of a message between daemon and mount worker is {value!r}, not {kind.__name__}")
    return value


def _negotiated(message: Message) -> tuple[int, int, int] | None:
    value = message.get("negotiated")
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(isinstance(part, int) for part in value):
        raise InvalidError(f"negotiated of a message between daemon and mount worker is {value!r}")
    return value[0], value[1], value[2]
