"""What the daemon and a mount worker say to each other, over `messages`.

The daemon's requests carry a number, ``seq``, and are answered once each, in order; events come unasked. A worker listens on a
socket in the daemon's root and talks to one daemon at a time: the next one is heard when the one before has hung up.

``hello`` and ``descriptors`` keep their meaning in every release: by them a daemon takes
back the mounts of a worker whose `PROTOCOL` is another than its own, and gives them to one that it can talk to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from snapshotter.errors import InvalidError
from snapshotter.mount.failures import FailureReport
from snapshotter.mount.messages import Message, typed
from snapshotter.mount.wire import Negotiated

PROTOCOL = 2
"""Raised with every change that an older end would not understand. 1 had no socket by which a worker could be found."""


@dataclass(frozen=True, slots=True)
class AddMount:
    """Serve the mount whose connection comes with this (`Connection.fds`).

    `mount_id` names it between the two; `name` is what a log line shows (a layer's digest, a container's image). `store` is
    handed to the worker's chunk store factory as it is. Whether another worker served it before, the connection's memory says.
    """

    mount_id: str
    metadata: str
    name: str
    as_layer: bool = True
    store: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ready:
    """INIT is done, by this worker or by one before it: the mount answers. `refused`: why the kernel was turned away."""

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


@dataclass(frozen=True, slots=True)
class Hello:
    """What a worker says of itself: its protocol, what it was started from (`identity`), its process, and its mounts."""

    protocol: int
    identity: str
    pid: int
    mounts: tuple[str, ...]


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
        mount_id=typed(message, "mount_id", str),
        metadata=typed(message, "metadata", str),
        name=typed(message, "name", str),
        as_layer=typed(message, "as_layer", bool),
        store=typed(message, "store", dict),
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
            return Ready(typed(message, "mount_id", str), _negotiated(message), None if refused is None else str(refused))
        case "gone":
            return Gone(typed(message, "mount_id", str))
        case "failure":
            texts = {key: typed(message, key, str) for key in ("mount", "path", "error", "error_type")}
            numbers = {key: typed(message, key, int) for key in ("ino", "offset", "length", "suppressed")}
            return FailureReport(**texts, **numbers)
        case other:
            raise InvalidError(f"unknown event {other!r}")


def hello_message(hello: Hello) -> Message:
    """The answer to ``hello``."""
    return asdict(hello)


def parse_hello(message: Message) -> Hello:
    """The other direction of `hello_message`.

    Raises:
        InvalidError: a field is missing or of the wrong type.
    """
    mounts = typed(message, "mounts", list)
    if not all(isinstance(mount, str) for mount in mounts):
        raise InvalidError(f"mounts of a message of a mount worker is {mounts!r}")
    return Hello(typed(message, "protocol", int), typed(message, "identity", str), typed(message, "pid", int), tuple(mounts))


def _negotiated(message: Message) -> tuple[int, int, int] | None:
    value = message.get("negotiated")
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(isinstance(part, int) for part in value):
        raise InvalidError(f"negotiated of a message between daemon and mount worker is {value!r}")
    return value[0], value[1], value[2]
