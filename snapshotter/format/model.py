"""What a rootfs metadata message says, as plain frozen values.

The names are those of ``schema/puzzlefs.capnp``. Nothing here does I/O or knows how the values are stored.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from snapshotter.format.digest import Digest

ROOT_INO = 1
"""The number of every image's root directory, which is also FUSE's root node id."""

NAME_MAX = 255
"""Longest directory entry in bytes (Linux, ``linux/limits.h``)."""

CHUNK_MAX = 16 << 20
"""Longest chunk, in raw bytes, that a reader accepts."""


class Kind(enum.IntEnum):
    """The type of an inode; the values are the discriminants of the schema's ``mode`` union."""

    UNKNOWN = 0
    FIFO = 1
    CHR = 2
    DIR = 3
    BLK = 4
    FILE = 5
    LNK = 6
    SOCK = 7
    WHT = 8


@dataclass(frozen=True, slots=True)
class FileChunk:
    """A run of a file's bytes: `length` bytes from `offset` on inside the chunk named `digest`.

    `digest` is the sha256 of the chunk's raw bytes; with `compressed` (only in images that upstream's program wrote) it
    is that of the bytes as stored, which are then zstd in the seekable format, while `offset` still counts raw bytes.
    """

    digest: Digest
    offset: int
    length: int
    compressed: bool = False


@dataclass(frozen=True, slots=True)
class DirEntry:
    """A name in a directory, and the number of the inode that it names."""

    ino: int
    name: bytes


@dataclass(frozen=True, slots=True)
class Xattr:
    """An extended attribute: its full key (``security.capability``) and its value, both bytes."""

    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Inode:
    """One inode. Which fields mean something follows from `kind`; the others keep their defaults.

    `permissions` are the low twelve bits of ``st_mode``; `mtime` counts seconds since the epoch (may be negative) and
    `mtime_nsec` the nanoseconds beyond it, 0 to 999,999,999. `look_below` is false for an opaque directory. A WHT inode
    is a whiteout: the name that leads to it hides the same name in the layers below.
    """

    ino: int
    kind: Kind
    permissions: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    mtime_nsec: int = 0
    device: tuple[int, int] = (0, 0)
    entries: Sequence[DirEntry] = ()
    look_below: bool = False
    chunks: Sequence[FileChunk] = ()
    xattrs: Sequence[Xattr] = ()
    target: bytes | None = None

    @property
    def size(self) -> int:
        """``st_size``: bytes of a file, of a symlink's target; 0 for everything else but a directory."""
        if self.kind is Kind.FILE:
            return sum(chunk.length for chunk in self.chunks)
        return len(self.target) if self.target is not None else 0


@dataclass(frozen=True, slots=True)
class ChunkVerity:
    """The fs-verity digest of the chunk named `digest` (sha256, 4096-byte blocks, no salt)."""

    digest: Digest
    verity: bytes


@dataclass(frozen=True, slots=True)
class RootfsContent:
    """Everything that one rootfs metadata message is made from, in canonical order.

    `layers` holds one inode list per metadata layer, newest first, each sorted by number; `verity` is sorted by digest.
    """

    layers: Sequence[Sequence[Inode]]
    verity: Sequence[ChunkVerity] = field(default=())
