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
from typing import Protocol

from snapshotter.build.digesttable import DigestTable
from snapshotter.format.annotations import PACKS_MAX, PackPlace
from snapshotter.format.compression import Codec
from snapshotter.format.digest import Digest, Digests
from snapshotter.format.pack import HEADER, PackEntry, PackIndex, trailer

PACK_BYTES = 256 << 20
"""A layer's new chunks are split into packs of about this size, so that one upload never has to be repeated whole."""

_BLOCK = 1 << 20

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


class Place(Protocol):
    """Where a chunk's stored form is, and what it is (`spool.SpooledChunk`)."""

    @property
    def offset(self) -> int:
        """Its first byte."""
        ...

    @property
    def stored_length(self) -> int:
        """Its bytes."""
        ...

    @property
    def raw_length(self) -> int:
        """Bytes of the chunk itself."""
        ...

    @property
    def codec(self) -> Codec:
        """What it is stored in."""
        ...


Read = Callable[[memoryview, int], int]
"""Puts what lies from an offset on where places say into a buffer, or a part of it; how many bytes these are."""


@dataclass(frozen=True, slots=True)
class PlannedPack(WrittenPack):
    """A pack that is to be written: also where its bytes come from, and what follows the chunks.

    Chunks that lie one after another where they come from are one run: it begins at byte `starts[n]` of the pack and at
    `sources[n]` there.
    """

    starts: Sequence[int]
    sources: Sequence[int]
    end: bytes


def plan_pack(chunks: Iterable[Digest], find: Callable[[Digest], Place], read: Read) -> PlannedPack:
    """What a pack of `chunks`, in that order, will be; `find` says where the stored form of each is, and `read` reads there.

    Nothing is written: `PackStream` gives the pack's bytes.
    """
    entries: list[PackEntry] = []
    starts, sources = array("Q"), array("Q")
    offset = len(HEADER)
    following = -1
    for digest in chunks:
        place = find(digest)
        entries.append(PackEntry(digest, place.raw_length, offset, place.stored_length, place.codec))
        if place.offset != following:
            starts.append(offset)
            sources.append(place.offset)
        following = place.offset + place.stored_length
        offset += place.stored_length
    whole = hashlib.sha256(HEADER)
    for start, end, source in zip(starts, [*starts[1:], offset], sources, strict=True):
        _hash(whole, read, source, end - start)
    end_bytes, index_length = trailer(entries, offset)
    whole.update(end_bytes)
    written = PackPlace(Digest(whole.digest()), offset, index_length)
    index = PackIndex.parse(end_bytes[:index_length], offset)
    return PlannedPack(written, offset + len(end_bytes), index, starts, sources, end_bytes)


def _hash(whole: hashlib._Hash, read: Read, source: int, left: int) -> None:
    buffer = memoryview(bytearray(min(_BLOCK, left)))
    while left:
        count = read(buffer[:left], source)
        whole.update(buffer[:count])
        source += count
        left -= count


class PackStream(io.RawIOBase):
    """The bytes of a pack, read as they are asked for, from any place on: an upload may begin again."""

    def __init__(self, pack: PlannedPack, read: Read) -> None:
        """`pack` as `plan_pack` gave it for the same `read`."""
        super().__init__()
        self._pack = pack
        self._read = read
        self._at = 0

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
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._pack.size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # what io gives
        """See `io.RawIOBase`."""
        count = self._next(memoryview(buffer))
        self._at += count
        return count

    def _next(self, buffer: memoryview) -> int:
        at, chunks_end = self._at, self._pack.place.index_offset
        if at < len(HEADER):
            return _copy(buffer, HEADER[at:])
        if at >= chunks_end:
            return _copy(buffer, self._pack.end[at - chunks_end :])
        starts = self._pack.starts
        run = bisect_right(starts, at) - 1
        end = starts[run + 1] if run + 1 < len(starts) else chunks_end
        return self._read(buffer[: end - at], self._pack.sources[run] + at - starts[run])


def _copy(buffer: memoryview, data: bytes) -> int:
    count = min(len(buffer), len(data))
    buffer[:count] = data[:count]
    return count
