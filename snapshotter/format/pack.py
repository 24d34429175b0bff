"""Packs: many encoded chunks in one blob, ending with an index and a footer of fixed size.

::

    header | chunk … chunk | index (a zstd frame around the Cap'n Proto message of schema/pack.capnp) | footer

The header is the magic ``PZFSPACK``. Without it a pack would begin with its first chunk, a zstd frame, and whoever tells
compressed layers by their first bytes (containerd's ``DetectCompression``, which nerdctl's push relies on) would try to
decompress the whole pack; its diff ID is its digest, because it is not compressed as a whole.

The footer (`FOOTER_SIZE` bytes, little-endian) is: the magic ``PZFSPACK``, version u32 = 1, the index's stored length u32,
its offset u64. A wrong index can make a chunk unreadable but never wrong, since every chunk is checked by its digest; bounds
are checked all the same, so that it cannot make a reader ask for absurd ranges.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from snapshotter.errors import CorruptError
from snapshotter.format import packindex
from snapshotter.format.compression import GROUP_RAW_MAX, Codec, compress, decompress
from snapshotter.format.digest import Digest, Digests
from snapshotter.format.model import CHUNK_MAX

__all__ = ["FOOTER_SIZE", "HEADER", "Codec", "PackEntry", "PackIndex", "end_of", "parse_footer", "trailer"]

VERSION = 1
_FOOTER = struct.Struct("<8sIIQ")
_MAGIC = b"PZFSPACK"
HEADER = _MAGIC
"""The first bytes of every pack; chunks come behind it."""
FOOTER_SIZE = _FOOTER.size

GROUP_STORED_MAX = GROUP_RAW_MAX + (1 << 16)
"""Largest stored group: what zstd makes of incompressible bytes is a little longer than they are."""

INDEX_RAW_MAX = 256 << 20
"""Largest index in bytes, uncompressed: about five million chunks."""


@dataclass(frozen=True, slots=True)
class PackEntry:
    """One chunk of a pack: its name, its raw length, and where its encoded bytes lie (all in bytes).

    Of a chunk in a group, `offset` and `stored_length` are the group's, and `within` is where it begins in the raw group.
    """

    digest: Digest
    raw_length: int
    offset: int
    stored_length: int
    codec: Codec
    within: int = 0


class PackIndex:
    """Where the chunks of one pack are; searched in place, about 50 bytes a chunk in memory."""

    __slots__ = ("_columns", "digests")

    def __init__(self, columns: packindex.PackColumns) -> None:
        """From columns that are known to be consistent; `parse` is the way in for stored bytes."""
        self._columns = columns
        self.digests: Sequence[Digest] = Digests(columns.digests)
        """The chunks, ascending."""

    @classmethod
    def parse(cls, stored: bytes, index_offset: int) -> PackIndex:
        """The index whose stored (compressed) bytes are `stored`, of a pack whose chunks lie before `index_offset`.

        Raises:
            CorruptError: it does not decode, breaks a rule, or names bytes that are not before `index_offset`.
        """
        columns = packindex.decode(decompress(stored, INDEX_RAW_MAX))
        _check(columns, index_offset)
        return cls(columns)

    def find(self, digest: Digest) -> PackEntry | None:
        """Where the chunk named `digest` is, None if it is not in this pack."""
        row = bisect_left(self.digests, digest)
        if row < len(self.digests) and self.digests[row] == digest:
            return self._entry(row)
        return None

    @property
    def has_groups(self) -> bool:
        """Whether chunks are stored in groups: such a pack is for whoever wants all of it."""
        return bool(self._columns.within)

    def __len__(self) -> int:
        return len(self.digests)

    def __iter__(self) -> Iterator[PackEntry]:
        return map(self._entry, range(len(self.digests)))

    def by_place(self) -> Iterator[tuple[tuple[int, int], list[PackEntry]]]:
        """Where something is, offset and stored length, ascending, and what: one chunk, or those of a group."""
        columns = self._columns
        places = list(zip(columns.offsets, columns.stored_lengths, strict=True))
        for place, rows in groupby(sorted(range(len(places)), key=places.__getitem__), places.__getitem__):
            yield place, list(map(self._entry, rows))

    def _entry(self, row: int) -> PackEntry:
        columns = self._columns
        return PackEntry(
            self.digests[row],
            columns.raw_lengths[row],
            columns.offsets[row],
            columns.stored_lengths[row],
            Codec(columns.codecs[row]),
            columns.within[row] if columns.within else 0,
        )


def trailer(entries: Iterable[PackEntry], index_offset: int) -> tuple[bytes, int]:
    """What follows the chunks: the index, then the footer. `index_offset` is the length of all chunks before it.

    Returns the bytes, and the index's stored length.
    """
    rows = sorted(entries, key=attrgetter("digest"))
    columns = packindex.PackColumns(
        digests=b"".join(row.digest for row in rows),
        raw_lengths=array("I", (row.raw_length for row in rows)),
        offsets=array("Q", (row.offset for row in rows)),
        stored_lengths=array("I", (row.stored_length for row in rows)),
        codecs=array("B", (row.codec for row in rows)),
        within=array("I", (row.within for row in rows) if any(row.codec is Codec.GROUP for row in rows) else ()),
    )
    return end_of(columns, index_offset)


def end_of(columns: packindex.PackColumns, index_offset: int) -> tuple[bytes, int]:
    """`trailer` for rows that are in columns already, in the order of their digests."""
    index = compress(packindex.encode(columns))
    return index + _FOOTER.pack(_MAGIC, VERSION, len(index), index_offset), len(index)


def parse_footer(footer: bytes, pack_size: int) -> tuple[int, int]:
    """Offset and stored length of the index, from the last `FOOTER_SIZE` bytes of a pack of `pack_size` bytes.

    Raises:
        CorruptError: these are not a pack's last bytes.
    """
    if len(footer) != FOOTER_SIZE:
        raise CorruptError(f"a pack's footer has {FOOTER_SIZE} bytes, not {len(footer)}")
    magic, version, length, offset = _FOOTER.unpack(footer)
    if magic != _MAGIC:
        raise CorruptError("not a PuzzleFS pack: its footer's magic is missing")
    if version != VERSION:
        raise CorruptError(f"pack version {version} is not readable by this program (it reads {VERSION})")
    if offset + length + FOOTER_SIZE != pack_size:
        raise CorruptError(f"the footer places the index at {offset}+{length} in a pack of {pack_size} bytes")
    return offset, length


def _check(columns: packindex.PackColumns, index_offset: int) -> None:
    """Raise `CorruptError` for the first rule that a row breaks."""
    count = len(columns.raw_lengths)
    if len(columns.digests) != 32 * count or any(
        len(column) != count for column in (columns.offsets, columns.stored_lengths, columns.codecs)
    ):
        raise CorruptError("pack index: its columns differ in length")
    if count == 0:
        return
    digests = Digests(columns.digests)
    if any(digests[row] >= digests[row + 1] for row in range(count - 1)):
        raise CorruptError("pack index: its rows are not in the order of their digests")
    if not set(columns.codecs) <= {int(known) for known in Codec}:
        raise CorruptError(f"pack index: it uses codec {max(columns.codecs)}, which this program does not read")
    rows = zip(columns.raw_lengths, columns.stored_lengths, columns.offsets, columns.codecs, strict=True)
    for row, (raw, stored, offset, codec) in enumerate(rows):
        if codec == Codec.GROUP:
            within = columns.within[row] if columns.within else GROUP_RAW_MAX
            if not (raw > 0 and within + raw <= GROUP_RAW_MAX and 0 < stored <= GROUP_STORED_MAX):
                raise CorruptError(f"pack index: a chunk at {within}+{raw} of a group stored in {stored} bytes")
        elif not 0 < stored <= raw <= CHUNK_MAX:
            raise CorruptError(f"pack index: a chunk of {raw} bytes stored in {stored} (at most {CHUNK_MAX} are accepted)")
        if offset < len(HEADER) or offset + stored > index_offset:
            raise CorruptError("pack index: a chunk lies outside the pack's chunks")
