"""Which chunks go into which pack, and the writing of one.

`plan_packs` is a pure function; `plan_pack` and `PackStream` put encoded chunks one after another, then the index.
"""

from __future__ import annotations

import hashlib
import io
from array import array
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from snapshotter.build.digesttable import DigestTable
from snapshotter.format.annotations import PACKS_MAX, PackPlace
from snapshotter.format.compression import Codec
from snapshotter.format.digest import Digest, Digests
from snapshotter.format.pack import HEADER, PackEntry, PackIndex, trailer

PACK_BYTES = 256 << 20
"""A layer's new chunks are split into packs of about this size, so that one upload never has to be repeated whole."""

NEW_PACKS_KEPT = 4
"""So many new packs stay apart even where that means writing chunks of an old one anew."""


@dataclass(frozen=True, slots=True)
class PackPlan:
    """What an image's data layers will be: the reused packs (by number, ascending), then new ones (their chunks in order)."""

    kept: Sequence[int]
    new: Sequence[Sequence[Digest]]


Find = Callable[[Digest], tuple[int | None, int]]
"""For a chunk, the number of the reused pack that has it, None if it is new, and its stored length."""


def plan_packs(
    layers: Sequence[Iterable[Digest]], find: Find, *, most: int = PACKS_MAX, pack_bytes: int = PACK_BYTES
) -> PackPlan:
    """Decide the packs of an image.

    `layers` are the chunks of each layer in walk order. A layer's new chunks make a pack of their own, more where they exceed
    `pack_bytes`. Where there would be more than `most` packs in all, the reused packs with the fewest needed bytes are given
    up, their chunks written anew with the first layer that needs them, and then neighbouring new packs are put together, the
    smallest first.
    """
    needed: dict[int, int] = {}
    has_new = False
    for digest in DigestTable(digest for layer in layers for digest in layer):
        number, length = find(digest)
        if number is None:
            has_new = True
        else:
            needed[number] = needed.get(number, 0) + length
    kept = set(needed)
    packs = _new_packs(layers, find, kept, pack_bytes)
    room = most - min(len(packs), NEW_PACKS_KEPT, most)
    if len(kept) > room:
        if not has_new:
            room = most - 1  # what is given up needs a pack
        emptiest = sorted(kept, key=lambda number: (needed[number], number))
        kept -= set(emptiest[: max(len(kept) - room, 0)])
        packs = _new_packs(layers, find, kept, pack_bytes)
    while len(packs) > 1 and len(packs) + len(kept) > most:
        first = min(range(len(packs) - 1), key=lambda index: packs[index].size + packs[index + 1].size)
        packs[first].join(packs.pop(first + 1))
    return PackPlan(sorted(kept), [Digests(pack.names) for pack in packs])


class _NewPack:
    """The chunks of a pack, and how many bytes they are together."""

    def __init__(self) -> None:
        self.names = bytearray()
        self.size = 0

    def add(self, digest: Digest, length: int) -> None:
        self.names += digest
        self.size += length

    def join(self, other: _NewPack) -> None:
        self.names += other.names
        self.size += other.size


def _new_packs(layers: Sequence[Iterable[Digest]], find: Find, kept: Collection[int], pack_bytes: int) -> list[_NewPack]:
    packs: list[_NewPack] = []
    placed = DigestTable()
    for layer in layers:
        pack: _NewPack | None = None
        for digest in layer:
            number, length = find(digest)
            if number in kept or not placed.add(digest):
                continue
            if pack is None or pack.size + length > pack_bytes:
                pack = _NewPack()
                packs.append(pack)
            pack.add(digest, length)
    return packs


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk as a pack holds it."""

    codec: Codec
    raw_length: int
    data: bytes


@dataclass(frozen=True, slots=True)
class WrittenPack:
    """A pack that was written: where its index lies, its size in bytes, its index."""

    place: PackPlace
    size: int
    index: PackIndex


@dataclass(frozen=True, slots=True)
class PlannedPack(WrittenPack):
    """A pack that is to be written: also where each of its chunks begins, and what follows the chunks."""

    starts: Sequence[int]
    end: bytes


def plan_pack(chunks: Iterable[Digest], read: Callable[[Digest], StoredChunk]) -> PlannedPack:
    """What a pack of `chunks`, in that order, will be; `read` gives each one's stored form.

    Nothing is written: `PackStream` gives the pack's bytes.
    """
    whole = hashlib.sha256(HEADER)
    entries: list[PackEntry] = []
    offset = len(HEADER)
    for digest in chunks:
        chunk = read(digest)
        whole.update(chunk.data)
        entries.append(PackEntry(digest, chunk.raw_length, offset, len(chunk.data), chunk.codec))
        offset += len(chunk.data)
    starts = array("Q", (entry.offset for entry in entries))
    end, index_length = trailer(entries, offset)
    whole.update(end)
    place = PackPlace(Digest(whole.digest()), offset, index_length)
    return PlannedPack(place, offset + len(end), PackIndex.parse(end[:index_length], offset), starts, end)


class PackStream(io.RawIOBase):
    """The bytes of a pack, read chunk by chunk as they are asked for, from any place on: an upload may begin again."""

    def __init__(self, chunks: Sequence[Digest], pack: PlannedPack, read: Callable[[Digest], StoredChunk]) -> None:
        """`pack` as `plan_pack` gave it for the same `chunks` and `read`."""
        super().__init__()
        self._chunks = chunks
        self._size = pack.size
        self._end = pack.end
        self._read = read
        self._starts = pack.starts
        self._chunks_end = pack.place.index_offset
        self._at = 0
        self._held = (0, HEADER)

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def seekable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def tell(self) -> int:
        """See `io.RawIOBase`."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See `io.RawIOBase`."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # any buffer; io gives memoryviews
        """See `io.RawIOBase`."""
        if self._at >= self._size:
            return 0
        start, held = self._held
        if not start <= self._at < start + len(held):
            start, held = self._held = self._part()
        within = self._at - start
        count = min(len(buffer), len(held) - within)
        buffer[:count] = held[within : within + count]
        self._at += count
        return count

    def _part(self) -> tuple[int, bytes]:
        """The part of the pack that the next byte is in, and where it begins."""
        if self._at < len(HEADER):
            return 0, HEADER
        if self._at >= self._chunks_end:
            return self._chunks_end, self._end
        row = bisect_right(self._starts, self._at) - 1
        return self._starts[row], self._read(self._chunks[row]).data
