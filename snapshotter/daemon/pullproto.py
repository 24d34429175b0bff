"""What ``puzzlefs pull`` and the daemon say to each other, over `mount.messages`.

The command sends one request and gets events, of which the last is `Pulled` or an error in its category. Hanging up ends the
pull. Imports next to nothing: the command is to be there at once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from snapshotter.errors import InvalidError
from snapshotter.mount.messages import Message, typed

NAME_MAX = 4096
"""Longest text of a request in characters."""


@dataclass(frozen=True, slots=True)
class PullRequest:
    """`reference` is to be pulled into containerd's `namespace`, unpacked by the `snapshotter` that containerd knows under this
    name; `platform` as OS/ARCHITECTURE[/VARIANT], None for the daemon's."""

    reference: str
    namespace: str
    snapshotter: str
    platform: str | None

    def message(self) -> Message:
        """As a message."""
        return asdict(self)

    @classmethod
    def parse(cls, message: Message) -> PullRequest:
        """The other direction of `message`.

        Raises:
            InvalidError: a field is missing, of the wrong type or too long.
        """
        platform = None if message.get("platform") is None else typed(message, "platform", str)
        request = cls(
            typed(message, "reference", str), typed(message, "namespace", str), typed(message, "snapshotter", str), platform
        )
        for text in (request.reference, request.namespace, request.snapshotter, platform or ""):
            if len(text) > NAME_MAX:
                raise InvalidError(f"a name of {len(text)} characters, at most {NAME_MAX} are read")
        return request


@dataclass(frozen=True, slots=True)
class LayerArriving:
    """`received` of the `size` bytes of a layer that has to be downloaded are here."""

    digest: str
    received: int
    size: int


@dataclass(frozen=True, slots=True)
class LayerDone:
    """A layer is unpacked: its place in the image, counted from 1, the bytes of it that were `downloaded`, and whether it is a
    lazy one. One of which nothing was downloaded and that is not lazy was there already."""

    number: int
    count: int
    digest: str
    downloaded: int
    lazy: bool


@dataclass(frozen=True, slots=True)
class Pulled:
    """A pulled image: its name in containerd, the digest that the name now stands for, the chain ID of its root, how many of
    its layers are lazy, and the bytes that the pull itself `received`: documents and ordinary layers."""

    name: str
    manifest: str
    chain: str
    lazy_layers: int
    layers: int
    received: int


Event = LayerArriving | LayerDone | Pulled

_KINDS: dict[str, type[Event]] = {"arriving": LayerArriving, "layer": LayerDone, "pulled": Pulled}


def event_message(event: Event) -> Message:
    """The message for `event`."""
    return {"event": next(name for name, kind in _KINDS.items() if isinstance(event, kind)), **asdict(event)}


def parse_event(message: Message) -> Event:
    """The other direction of `event_message`.

    Raises:
        InvalidError: it is no event.
    """

    def text(key: str) -> str:
        return str(typed(message, key, str))

    def number(key: str) -> int:
        return int(typed(message, key, int))

    match message.get("event"):
        case "arriving":
            return LayerArriving(text("digest"), number("received"), number("size"))
        case "layer":
            lazy = bool(typed(message, "lazy", bool))
            return LayerDone(number("number"), number("count"), text("digest"), number("downloaded"), lazy)
        case "pulled":
            counts = number("lazy_layers"), number("layers"), number("received")
            return Pulled(text("name"), text("manifest"), text("chain"), *counts)
        case other:
            raise InvalidError(f"unknown event {other!r} of a pull")
