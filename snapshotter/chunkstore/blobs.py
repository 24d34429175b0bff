"""Chunks that are blobs of their own: upstream's layout, where each has the name of its stored bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from snapshotter.chunkstore.base import BlobReader, ChunkCorruptError, ChunkMissingError, ChunkRef
from snapshotter.chunkstore.sources import translate
from snapshotter.chunkstore.stats import Count, Stats
from snapshotter.errors import CorruptError, PuzzlefsError
from snapshotter.format.compression import decode_seekable
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.format.model import CHUNK_MAX

_OVERHEAD = 1 << 20
"""What zstd's seekable form may add to an incompressible chunk, generously: 8 bytes a frame of 4096."""


class BlobStore:
    """Chunks as blobs behind `reader`. `size_of` tells a blob's stored size in bytes, None where there is no such blob
    (a manifest's descriptors, or a stat in a local layout). `on_node`: the blobs are on this machine.

    A raw chunk is answered as it is stored, for `verify` to check. A compressed one is checked here, against its name,
    before it is decoded: its name is the digest of the stored bytes, which nobody above sees.
    """

    def __init__(
        self, reader: BlobReader, size_of: Callable[[Digest], int | None], *, stats: Stats, on_node: bool = False
    ) -> None:
        self._reader = reader
        self._size_of = size_of
        self._stats = stats
        self._on_node = on_node

    @property
    def name(self) -> str:
        return f"blobs({self._reader.name})"

    def get(self, wanted: Sequence[ChunkRef]) -> list[bytes]:
        sizes = {ref.digest: self._size_of(ref.digest) for ref in wanted}
        missing = [digest for digest, size in sizes.items() if size is None]
        if missing:
            raise ChunkMissingError(f"chunk {to_text(missing[0])} is not in {self._reader.name}", missing)
        got: dict[ChunkRef, bytes] = {}
        for ref in wanted:
            if ref not in got:
                got[ref] = self._fetch(ref, sizes[ref.digest] or 0)
        return [got[ref] for ref in wanted]

    def has(self, digest: Digest) -> bool:
        return self._on_node and self._size_of(digest) is not None

    def close(self) -> None:
        """Nothing is held: the reader belongs to whoever made it."""

    def _fetch(self, ref: ChunkRef, size: int) -> bytes:
        if not 0 < size <= CHUNK_MAX + _OVERHEAD:
            raise ChunkCorruptError(ref.digest, self._reader.name, f"its blob has {size} bytes")
        try:
            stored = self._reader.read_range(ref.digest, 0, size)
        except PuzzlefsError as error:
            raise translate(error, [ref.digest], self._reader.name) from error
        self._stats.add(Count.REQUESTS, source=self._reader.name)
        self._stats.add(Count.BYTES, len(stored), source=self._reader.name)
        if not ref.compressed:
            return stored
        if sha256(stored) != ref.digest:
            raise ChunkCorruptError(ref.digest, self._reader.name, "the sha256 of the stored bytes is another")
        try:
            return decode_seekable(stored, CHUNK_MAX)
        except CorruptError as error:
            raise ChunkCorruptError(ref.digest, self._reader.name, str(error)) from error
