"""Which users of the machine a container's users are, as containerd's labels say, and who shows layers to them.

A container in a user namespace (user_namespaces(7)) has its own root and its own users, who are others outside. Its image's
files must seem theirs. `ShiftedMounts` shows a layer so, without touching it; the functions are pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from snapshotter.errors import InvalidError

UID_LABEL = "containerd.io/snapshot/uidmapping"
GID_LABEL = "containerd.io/snapshot/gidmapping"
"""Both: ``inside:outside:size``, several separated by commas (containerd's ``core/snapshots/snapshotter.go``)."""

RANGES_MAX = 340
"""As many as the kernel takes (``UID_GID_MAP_MAX_EXTENTS``)."""
_IDS = (1 << 32) - 1
_RANGE = re.compile(r"([0-9]{1,10}):([0-9]{1,10}):([0-9]{1,10})\Z")


class Range(NamedTuple):
    """`size` users from `inside` on in the container are those from `outside` on of the machine."""

    inside: int
    outside: int
    size: int


@dataclass(frozen=True, slots=True)
class IdMap:
    """The users and the groups of a container; its root is among them."""

    uids: tuple[Range, ...]
    gids: tuple[Range, ...]

    def owner(self, uid: int, gid: int) -> tuple[int, int]:
        """Who outside is this owner inside; root's for one that there is none for."""
        return _outside(self.uids, uid), _outside(self.gids, gid)


class ShiftedMounts(Protocol):
    """Shows directories with other owners, by mounts that belong to a snapshot. Safe for use by many threads."""

    def show(self, ident: int, directories: Sequence[Path], ids: IdMap) -> list[Path]:
        """Where `directories` are shown, read-only and with owners as `ids` says, to snapshot `ident`. Idempotent: what is
        shown already stays, and what is not any more is again.

        Raises:
            UnsupportedError: this kernel cannot do it.
            FailedPreconditionError, UnavailableError: it cannot be done.
        """
        ...

    def hide(self, ident: int) -> None:
        """Show snapshot `ident` nothing more; harmless where nothing is shown. Containers that run keep what they see.

        Raises:
            UnavailableError: it cannot be done now.
        """
        ...

    def shown(self) -> set[int]:
        """The snapshots that are shown something."""
        ...


def of_labels(labels: Mapping[str, str]) -> IdMap | None:
    """What the labels of a snapshot say; None where they ask for nothing.

    Raises:
        InvalidError: they say it in another way than containerd, for users or groups alone, or leave root out.
    """
    if not labels.get(UID_LABEL) and not labels.get(GID_LABEL):
        return None
    return IdMap(_ranges(UID_LABEL, labels.get(UID_LABEL, "")), _ranges(GID_LABEL, labels.get(GID_LABEL, "")))


def _ranges(label: str, text: str) -> tuple[Range, ...]:
    parts = text.split(",")
    if len(parts) > RANGES_MAX:
        raise InvalidError(f"label {label} has {len(parts)} ranges, the kernel takes {RANGES_MAX}")
    ranges = []
    for part in parts:
        match = _RANGE.match(part)
        found = Range(*map(int, match.groups())) if match is not None else None
        if found is None or not found.size or max(found.inside, found.outside) + found.size > _IDS:
            raise InvalidError(f"label {label} must be INSIDE:OUTSIDE:SIZE, several separated by commas, not {text[:80]!r}")
        ranges.append(found)
    if not any(found.inside == 0 for found in ranges):
        raise InvalidError(f"label {label} gives the container no root: {text[:80]!r}")
    return tuple(ranges)


def _outside(ranges: Sequence[Range], number: int) -> int:
    for found in ranges:
        if found.inside <= number < found.inside + found.size:
            return found.outside + number - found.inside
    return _outside(ranges, 0)
