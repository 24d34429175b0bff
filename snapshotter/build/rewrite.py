"""Takes single chunks out of packs that exist, in their stored form, to write them into a new pack."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection

from snapshotter.build.pack import StoredChunk
from snapshotter.build.reuse import StoredPack
from snapshotter.errors import CorruptError
from snapshotter.format.compression import decode_chunk
from snapshotter.format.digest import Digest, sha256, to_text

RUN_BYTES = 4 << 20
"""Most bytes of one request, which are also held in memory for each pack."""

GAP_BYTES = 64 << 10
"""A gap that costs less to read than another request does."""


class PackCopier:
    """Reads the chunks `wanted` of one pack; neighbouring ones with one request."""

    def __init__(self, pack: StoredPack, wanted: Collection[Digest]) -> None:
        """All of `wanted` are in the pack's index."""
        self._pack = pack
        places = sorted((entry.offset, entry.stored_length) for entry in map(pack.index.find, wanted) if entry is not None)
        self._runs: list[tuple[int, int]] = []
        for offset, length in places:
            if self._runs:
                start, end = self._runs[-1]
                if offset - end <= GAP_BYTES and offset + length - start <= RUN_BYTES:
                    self._runs[-1] = (start, max(end, offset + length))
                    continue
            self._runs.append((offset, offset + length))
        self._starts = [start for start, _ in self._runs]
        self._held: tuple[int, bytes] = (0, b"")

    def read(self, digest: Digest) -> StoredChunk:
        """The chunk's stored form, checked against its digest.

        Raises:
            CorruptError: the pack holds something else there.
            NotFoundError, UnavailableError: see `ImageStore.read_range`.
        """
        entry = self._pack.index.find(digest)
        if entry is None:
            raise CorruptError(f"pack {to_text(self._pack.place.pack)} has no chunk {to_text(digest)}")
        start, held = self._held
        if not start <= entry.offset <= entry.offset + entry.stored_length <= start + len(held):
            start, end = self._runs[bisect_right(self._starts, entry.offset) - 1]
            held = self._pack.store.read_range(self._pack.place.pack, start, end - start)
            self._held = (start, held)
        stored = held[entry.offset - start : entry.offset - start + entry.stored_length]
        where = f"chunk {to_text(digest)} in pack {to_text(self._pack.place.pack)} of {self._pack.store.name}"
        try:
            raw = decode_chunk(entry.codec, stored, entry.raw_length)
        except CorruptError as error:
            raise CorruptError(f"{where} is corrupt: {error}") from None
        if sha256(raw) != digest:
            raise CorruptError(f"{where} is corrupt: its bytes have another digest")
        return StoredChunk(entry.codec, entry.raw_length, stored)
