"""What a snapshot is, in containerd's terms, as plain frozen values.

A snapshot is *active* (made by Prepare, writable), a *view* (made by View, read-only) or *committed* (made by Commit from an
active one, never changing again, the only kind that can be a parent). A snapshot is known by its *key* while it is active
or a view, by its *name* once it is committed; both live in one space of names, so both are ``name`` here.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from snapshotter.format.digest import Digest

REF_LABEL = "containerd.io/snapshot.ref"
"""The chain ID that a client wants to unpack. With it, Prepare may answer that the chain is there already."""


class Kind(enum.IntEnum):
    """The kind of a snapshot; the values are those of ``containerd.services.snapshots.v1.Kind``."""

    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


class Layer(enum.IntEnum):
    """What a snapshot adds to a mount; the values are stored in the database.

    ORDINARY: a directory of its own. METADATA: a lazily mounted PuzzleFS layer. PACK: nothing, it is only counted.
    """

    ORDINARY = 0
    METADATA = 1
    PACK = 2


@dataclass(frozen=True, slots=True)
class Info:
    """What Stat and List say about a snapshot. `parent` is empty for none; times are nanoseconds since the epoch."""

    name: str
    parent: str
    kind: Kind
    labels: Mapping[str, str]
    created: int
    updated: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Disk space that a snapshot takes: allocated bytes, and inodes."""

    size: int = 0
    inodes: int = 0


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount(2) that a client has to make: the file system `type`, its `source`, and fstab words."""

    type: str
    source: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Link:
    """One snapshot in a chain of parents, as far as mounting needs it. `diff_id` is None for an ordinary one."""

    id: int
    layer: Layer
    diff_id: Digest | None


@dataclass(frozen=True, slots=True)
class Row:
    """A snapshot as it is recorded.

    `id` names its directory and is never used again. `diff_id` and `chain_id` are set for lazy layers only. `usage` is None
    until it has been measured.
    """

    id: int
    info: Info
    layer: Layer = Layer.ORDINARY
    diff_id: Digest | None = None
    chain_id: Digest | None = None
    parent_id: int | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Hint:
    """One way in which a lazy layer was asked for: its annotations, the image reference (None: unknown), the namespace."""

    annotations: Mapping[str, str] = field(default_factory=dict)
    image: str | None = None
    namespace: str = ""
