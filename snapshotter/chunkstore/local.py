"""What members of the chain that fetch need of the node's cache: look, ask, keep.

A fetching member often learns more than it was asked for: chunks that lay beside the wanted ones, or the good part of an
answer that failed as a whole. Through this narrow door such chunks reach the cache without the member knowing one.
"""

from __future__ import annotations

from typing import Protocol

from snapshotter.format.digest import Digest


class LocalChunks(Protocol):
    """Verified raw chunks on this node. None of the methods raises because of a disk: it is a cache."""

    def peek(self, digest: Digest) -> bytes | None:
        """The chunk's raw bytes if they are here, verified: somebody reads them."""
        ...

    def has(self, digest: Digest) -> bool:
        """Whether the chunk seems to be here (its bytes are not looked at)."""
        ...

    def put(self, digest: Digest, raw: bytes, *, wanted: bool = True) -> None:
        """Keep `raw`, whose sha256 the caller has found to be `digest`. `wanted`: somebody reads it; else it came unasked."""
        ...
