"""Which chunks go into which pack, and the writing of one.

`plan_packs` is a pure function; `plan_pack` and `PackStream` put encoded chunks one after another, then the index.
"""

from __future__ import annotations

import hashlib
import io
from array import array
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from snapshotter.format.annotations import PACKS_MAX, PackPlace
from snapshotter.format.compression import Codec
from snapshotter.format.digest import Digest
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


def plan_packs(
    layers: Sequence[Collection[Digest]],
    new: Mapping[Digest, int],
    reused: Mapping[Digest, tuple[int, int]],
    *,
    most: int = PACKS_MAX,
    pack_bytes: int = PACK_BYTES,
) -> PackPlan:
    """Decide the packs of an image.

    `layers` are the chunks of each layer in walk order; every one is in `new` (with its stored length) or in `reused` (with
    the number of the pack that has it, and its stored length). A layer's new chunks make a pack of their own, more where
    they exceed `pack_bytes`. Where there would be more than `most` packs in all, the reused packs with the fewest needed
    bytes are given up, their chunks written anew with the first layer that needs them, and then neighbouring new packs are
    put together, the smallest first.
    """
    needed: dict[int, int] = {}
    for digest in dict.fromkeys(digest for layer in layers for digest in layer):
        if digest not in new:
            number, length = reused[digest]
            needed[number] = needed.get(number, 0) + length
    has_new = any(digest in new for layer in layers for digest in layer)
    kept = set(needed)
    packs = _new_packs(layers, new, reused, kept, pack_bytes)
    room = most - min(len(packs), NEW_PACKS_KEPT, most)
    if len(kept) > room:
        if not has_new:
            room = most - 1  # what is given up needs a pack
        emptiest = sorted(kept, key=lambda number: (needed[number], number))
        kept -= set(emptiest[: max(len(kept) - room, 0)])
        packs = _new_packs(layers, new, reused, kept, pack_bytes)
    while len(packs) > 1 and len(packs) + len(kept) > most:
        sizes = [sum(length for _, length in pack) for pack in packs]
        first = min(range(len(packs) - 1), key=lambda index: sizes[index] + sizes[index + 1])
        packs[first : first + 2] = [packs[first] + packs[first + 1]]
    return PackPlan(sorted(kept), [[digest for digest, _ in pack] for pack in packs])


def _new_packs(
    layers: Sequence[Collection[Digest]],
    new: Mapping[Digest, int],
    reused: Mapping[Digest, tuple[int, int]],
    kept: Collection[int],
    pack_bytes: int,
) -> list[list[tuple[Digest, int]]]:
    packs: list[list[tuple[Digest, int]]] = []
    placed: set[Digest] = set()
    for layer in layers:
        pack: list[tuple[Digest, int]] = []
        size = 0
        for digest in layer:
            if digest in placed or (digest not in new and reused[digest][0] in kept):
                continue
            placed.add(digest)
            length = new[digest] if digest in new else reused[digest][1]
            if pack and size + length > pack_bytes:
                packs.append(pack)
                pack, size = [], 0
            pack.append((digest, length))
            size += length
        if pack:
            packs.append(pack)
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


def plan_pack(chunks: Iterable[Digest], read: Callable[[Digest], StoredChunk]) -> tuple[WrittenPack, bytes]:
    """What a pack of `chunks`, in that order, will be, and what follows its chunks; `read` gives each one's stored form.

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
    end, index_length = trailer(entries, offset)
    whole.update(end)
    place = PackPlace(Digest(whole.digest()), offset, index_length)
    return WrittenPack(place, offset + len(end), PackIndex.parse(end[:index_length], offset)), end


class PackStream(io.RawIOBase):
    """The bytes of a pack, read chunk by chunk as they are asked for, from any place on: an upload may begin again."""

    def __init__(self, chunks: Sequence[Digest], pack: WrittenPack, end: bytes, read: Callable[[Digest], StoredChunk]) -> None:
        """`pack` and `end` as `plan_pack` gave them for the same `chunks` and `read`."""
        super().__init__()
        self._chunks = chunks
        self._size = pack.size
        self._end = end
        self._read = read
        self._starts = array("Q")
        at = len(HEADER)
        for digest in chunks:
            self._starts.append(at)
            entry = pack.index.find(digest)
            at += entry.stored_length if entry is not None else 0
        self._chunks_end = at
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
