"""What an image says about when its files were changed: what the tree says, or what does not depend on when it was made."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Protocol

from snapshotter.build.entries import Node
from snapshotter.errors import InvalidError
from snapshotter.format.model import Kind

SOURCE_DATE_EPOCH = "SOURCE_DATE_EPOCH"
"""The environment variable (reproducible-builds.org) that holds the time, in seconds, beyond which nothing was changed."""

POLICIES = ("keep", "clamp", "zero")

Done = Callable[[Node], None]
"""Told of each directory whose entries have their times: they may be put away (`shelf.Shelf.added`)."""


class Retime(Protocol):
    """Sets the times of a whole tree."""

    def __call__(self, root: Node, done: Done = ..., /) -> None:
        """Those of `root` and all below it."""
        ...


def _ignore(directory: Node) -> None:
    """Where nothing is put away."""


def keep(root: Node, done: Done = _ignore) -> None:
    """The times of the tree."""


def zero(root: Node, done: Done = _ignore) -> None:
    """1970, for everything."""
    clamp_to(0, 0)(root, done)


def clamp_to(latest: int, earliest: int | None = None) -> Retime:
    """Later times become `latest` (seconds since the epoch), and earlier ones `earliest` if that is given."""

    def set_time(node: Node) -> None:
        if (node.mtime, node.mtime_nsec) > (latest, 0):
            node.mtime, node.mtime_nsec = latest, 0
        elif earliest is not None and node.mtime < earliest:
            node.mtime, node.mtime_nsec = earliest, 0

    def retime(root: Node, done: Done = _ignore) -> None:
        set_time(root)
        pending = [root]
        while pending:
            directory = pending.pop()
            for node in directory.names().values():
                set_time(node)
                if node.kind is Kind.DIR:
                    pending.append(node)
            done(directory)

    return retime


def policy(name: str, environment: Mapping[str, str]) -> Retime:
    """What `name`, one of `POLICIES`, means.

    Raises:
        InvalidError: there is no such policy, or the environment has no SOURCE_DATE_EPOCH to clamp to.
    """
    if name == "keep":
        return keep
    if name == "zero":
        return zero
    if name != "clamp":
        raise InvalidError(f"there is no policy {name!r} for times; choose one of {', '.join(POLICIES)}")
    text = environment.get(SOURCE_DATE_EPOCH, "")
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise InvalidError(
            f"times are to be clamped to {SOURCE_DATE_EPOCH}, which is {text!r}: set it to a number of seconds since 1970"
        )
    return clamp_to(int(text))
