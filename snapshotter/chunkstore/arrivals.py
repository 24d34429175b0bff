"""What comes of the ranges of a request, cut into stored chunks as soon as each is complete, and their decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from snapshotter.chunkstore.base import BlobReader, ChunkCorruptError, RangesReader
from snapshotter.chunkstore.planner import Range
from snapshotter.errors import CorruptError, PuzzlefsError
from snapshotter.format.compression import Codec, decode_chunk, decode_group
from snapshotter.format.digest import Digest
from snapshotter.format.pack import PackEntry


def read(reader: BlobReader, digest: Digest, ranges: Sequence[Range]) -> Iterator[tuple[int, bytes]]:
    """The bytes of `ranges` of the blob, in blocks with their offset, from a reader of whichever kind.

    Raises:
        As `RangesReader.read_ranges`.
    """
    if isinstance(reader, RangesReader):
        yield from reader.read_ranges(digest, [(found.offset, found.length) for found in ranges])
        return
    for found in ranges:
        data = reader.read_range(digest, found.offset, found.length)
        if len(data) != found.length:
            raise CorruptError(f"{len(data)} bytes came instead of {found.length}")
        yield found.offset, data


class _Run:
    """One range: what has come of it, and how many of its chunks are cut out."""

    def __init__(self, found: Range) -> None:
        self.found = found
        self.data = bytearray()
        self.entries = sorted(found.entries, key=lambda entry: (entry.offset + entry.stored_length, entry.offset))
        self.cut = 0
        self._last = (-1, b"")

    def stored(self, entry: PackEntry) -> bytes:
        """`entry` as it is stored, which has come. Those of a group, which stand one after another, share their bytes: one has
        up to megabytes, for more than a hundred of them."""
        if self._last[0] != entry.offset or len(self._last[1]) != entry.stored_length:
            begin = entry.offset - self.found.offset
            with memoryview(self.data) as data:
                self._last = entry.offset, bytes(data[begin : begin + entry.stored_length])
        return self._last[1]


class Arrivals:
    """The ranges of one request on their way."""

    def __init__(self, ranges: Sequence[Range]) -> None:
        self._runs = {found.offset: _Run(found) for found in ranges}  # by the offset that comes next

    def feed(self, offset: int, block: bytes) -> Iterator[tuple[PackEntry, bytes]]:
        """The chunks that `block`, which lies at `offset` of the pack, completes, as they are stored.

        Raises:
            CorruptError: it was not asked for, or not in this order.
        """
        run = self._runs.pop(offset, None)
        if run is None or len(run.data) + len(block) > run.found.length:
            raise CorruptError(f"{len(block)} bytes at {offset} came that were not asked for")
        run.data += block
        end = offset + len(block)
        if end < run.found.end:
            self._runs[end] = run
        while run.cut < len(run.entries):
            entry = run.entries[run.cut]
            if entry.offset + entry.stored_length > end:
                return
            run.cut += 1
            yield entry, run.stored(entry)


class Decoder:
    """Decodes the chunks of a pack; the chunks of a group must come one after another."""

    def __init__(self, where: str) -> None:
        """`where` names the pack in errors."""
        self._where = where
        self._group: tuple[int, bytes] = (-1, b"")

    def decode(self, entry: PackEntry, stored: bytes) -> bytes | PuzzlefsError:
        """The chunk, or why there is none. Never raises."""
        try:
            if entry.codec is not Codec.GROUP:
                return decode_chunk(entry.codec, stored, entry.raw_length)
            if self._group[0] != entry.offset:
                self._group = (entry.offset, decode_group(stored))
            group = self._group[1]
            raw = group[entry.within : entry.within + entry.raw_length]
            if len(raw) != entry.raw_length:
                raise CorruptError(f"its group has {len(group)} bytes, it should lie at {entry.within}+{entry.raw_length}")
            return raw
        except CorruptError as error:
            return ChunkCorruptError(entry.digest, self._where, str(error))
