"""Content digests: 32 raw bytes inside, ``sha256:<64 hex digits>`` at every border.

The textual form is the OCI image specification's (descriptor.md, "Digests"). Only sha256 is accepted: it is what the
rootfs metadata holds, what containerd writes, and a second algorithm would give one content two names.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Iterator, Sequence
from typing import NewType

from snapshotter.errors import InvalidError

Digest = NewType("Digest", bytes)
"""The 32 bytes of a sha256."""


class Digests(Sequence[Digest]):
    """Digests one after another in one buffer, as a sequence that `bisect` can search."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes | bytearray | mmap.mmap) -> None:
        """`data` may grow."""
        self._data = data

    def __len__(self) -> int:
        return len(self._data) // 32

    def __getitem__(self, row: int) -> Digest:  # type: ignore[override]  # slices are never taken
        # Without a call of Digest, which would take a third of the time of a search.
        return bytes(self._data[row * 32 : row * 32 + 32])  # type: ignore[return-value]

    def __iter__(self) -> Iterator[Digest]:
        return map(self.__getitem__, range(len(self)))


_TEXT = re.compile(r"sha256:([0-9a-f]{64})\Z")


def sha256(data: bytes | bytearray | memoryview) -> Digest:
    """The digest of `data`."""
    return Digest(hashlib.sha256(data).digest())


def to_text(digest: Digest) -> str:
    """`digest` as ``sha256:<hex>``, the form of OCI descriptors and of containerd."""
    return "sha256:" + digest.hex()


def from_text(text: str) -> Digest:
    """The digest that `text` (``sha256:<64 lower-case hex digits>``) names.

    Raises:
        InvalidError: `text` is anything else.
    """
    match = _TEXT.match(text)
    if match is None:
        raise InvalidError(f"not a digest: {text[:100]!r} (expected sha256: and 64 lower-case hexadecimal digits)")
    return Digest(bytes.fromhex(match[1]))


def chain_id(parent: Digest | None, diff_id: Digest) -> Digest:
    """The chain ID of a layer on top of the chain `parent` (None: it is the first).

    The rule is the OCI image specification's (config.md, "Layer ChainID").
    """
    if parent is None:
        return diff_id
    return sha256(f"{to_text(parent)} {to_text(diff_id)}".encode())
