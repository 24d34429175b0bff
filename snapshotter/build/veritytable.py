"""fs-verity digests by chunk, in 74 to 82 bytes each, and in the order in which a message has them."""

from __future__ import annotations

from collections.abc import Iterator

from snapshotter.build.digesttable import DigestTable
from snapshotter.format.digest import Digest
from snapshotter.format.model import ChunkVerity
from snapshotter.format.verity import DIGEST_SIZE


class VerityTable:
    """The fs-verity digest of each of many chunks."""

    def __init__(self) -> None:
        """Empty at first."""
        self._chunks = DigestTable()
        self._verity = bytearray()

    def put(self, chunk: Digest, verity: bytes) -> None:
        """That of `chunk`, in place of what was put before."""
        if self._chunks.add(chunk):
            self._verity += verity
        else:
            row = self._chunks.find(chunk) or 0
            self._verity[row * DIGEST_SIZE : (row + 1) * DIGEST_SIZE] = verity

    def __len__(self) -> int:
        return len(self._chunks)

    def pairs(self) -> Iterator[ChunkVerity]:
        """All of them, in the order of the chunks' digests."""
        for chunk in sorted(self._chunks):
            row = self._chunks.find(chunk) or 0
            yield ChunkVerity(chunk, bytes(self._verity[row * DIGEST_SIZE : (row + 1) * DIGEST_SIZE]))
