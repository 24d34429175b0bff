"""Which chunks go into which pack, and the writing of one.

`plan_packs` and `lay_out` are pure functions; `PackStream` puts encoded chunks one after another, then the index.
"""

from __future__ import annotations

import hashlib
import io
from array import array
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Protocol

from snapshotter.build.digesttable import DigestTable
from snapshotter.format.annotations import PACKS_MAX, PackPlace
from snapshotter.format.compression import Codec
from snapshotter.format.digest import Digest, Digests
from snapshotter.format.pack import HEADER, PackIndex, end_of
from snapshotter.format.packindex import PackColumns

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
    chunks = _Chunks(layers, find)
    needed: dict[int, int] = {}
    for number, length in zip(chunks.numbers, chunks.lengths, strict=True):
        if number != _NEW:
            needed[number] = needed.get(number, 0) + length
    kept = set(needed)
    packs = _new_packs(chunks, kept, pack_bytes)
    room = most - min(len(packs), NEW_PACKS_KEPT, most)
    if len(kept) > room:
        if not packs:
            room = most - 1  # what is given up needs a pack
        emptiest = sorted(kept, key=lambda number: (needed[number], number))
        kept -= set(emptiest[: max(len(kept) - room, 0)])
        packs = _new_packs(chunks, kept, pack_bytes)
    while len(packs) > 1 and len(packs) + len(kept) > most:
        first = min(range(len(packs) - 1), key=lambda index: packs[index].size + packs[index + 1].size)
        packs[first].join(packs.pop(first + 1))
    return PackPlan(sorted(kept), [Digests(pack.names) for pack in packs])


_NEW = -1


class _Chunks:
    """The chunks of all layers, each once: the number of the reused pack that has it, or `_NEW`, and its stored length."""

    def __init__(self, layers: Sequence[Iterable[Digest]], find: Find) -> None:
        self.numbers = array("i")
        self.lengths = array("I")
        self.ends: list[int] = []
        """For each layer, how many there are when its own have been added."""
        if len(layers) == 1 and isinstance(layers[0], DigestTable):
            self.names = layers[0]  # each is there once already
            for digest in self.names:
                self._add(*find(digest))
            self.ends.append(len(self.names))
            return
        self.names = DigestTable()
        for layer in layers:
            for digest in layer:
                if self.names.add(digest):
                    self._add(*find(digest))
            self.ends.append(len(self.names))

    def _add(self, number: int | None, length: int) -> None:
        self.numbers.append(_NEW if number is None else number)
        self.lengths.append(length)


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


def _new_packs(chunks: _Chunks, kept: Collection[int], pack_bytes: int) -> list[_NewPack]:
    """A chunk is written with the first layer that needs it."""
    packs: list[_NewPack] = []
    rows = zip(chunks.names, chunks.numbers, chunks.lengths, strict=True)
    for start, end in pairwise([0, *chunks.ends]):
        pack: _NewPack | None = None
        for digest, number, length in islice(rows, end - start):
            if number in kept:
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
class PackLayout:
    """A pack that is to be written: its index, and where its bytes come from.

    Chunks that lie one after another where they come from are one run: it begins at byte `starts[n]` of the pack and at
    `sources[n]` there. `end` follows the chunks, at byte `index_offset`; of it the index takes `index_length` bytes.
    """

    index: PackIndex
    starts: Sequence[int]
    sources: Sequence[int]
    end: bytes
    index_offset: int
    index_length: int

    @property
    def size(self) -> int:
        """Bytes of the pack."""
        return self.index_offset + len(self.end)

    def named(self, pack: Digest) -> PackPlace:
        """Its place once its digest is known."""
        return PackPlace(pack, self.index_offset, self.index_length)


def lay_out(chunks: Sequence[Digest], find: Callable[[Digest], Place]) -> PackLayout:
    """What a pack of `chunks`, in that order, will be; `find` says where the stored form of each is.

    Nothing is read: `PackStream` gives the pack's bytes.
    """
    raw, offsets, stored, codecs = array("I"), array("Q"), array("I"), array("B")
    starts, sources = array("Q"), array("Q")
    offset = len(HEADER)
    following = -1
    for digest in chunks:
        place = find(digest)
        length = place.stored_length
        raw.append(place.raw_length)
        offsets.append(offset)
        stored.append(length)
        codecs.append(place.codec)
        if place.offset != following:
            starts.append(offset)
            sources.append(place.offset)
        following = place.offset + length
        offset += length
    names = list(chunks)
    order = sorted(range(len(names)), key=names.__getitem__)
    columns = PackColumns(
        b"".join([names[row] for row in order]),
        array("I", [raw[row] for row in order]),
        array("Q", [offsets[row] for row in order]),
        array("I", [stored[row] for row in order]),
        array("B", [codecs[row] for row in order]),
    )
    end, index_length = end_of(columns, offset)
    return PackLayout(PackIndex(columns), starts, sources, end, offset, index_length)


def digest_of(pack: PackLayout, read: Read) -> Digest:
    """The digest of a pack, read where its bytes come from."""
    whole = hashlib.sha256()
    buffer = memoryview(bytearray(min(_BLOCK, pack.size)))
    with PackStream(pack, read) as stream:
        while count := stream.readinto(buffer):
            whole.update(buffer[:count])
    return Digest(whole.digest())


class PackStream(io.RawIOBase):
    """The bytes of a pack, read as they are asked for, from any place on: an upload may begin again."""

    def __init__(self, pack: PackLayout, read: Read) -> None:
        """`read` reads where the places lie by which `pack` was laid out."""
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
        at, chunks_end = self._at, self._pack.index_offset
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
