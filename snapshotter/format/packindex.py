"""Between the index of a pack and its columns: what schema/pack.capnp says, in code.

An index is read once, in whole columns: each is one list of plain numbers, which module array takes over as it lies. It may be
hostile: what bounds a column is the message that it lies in (`reader`).
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from snapshotter.errors import CorruptError
from snapshotter.format.message import MessageBuilder
from snapshotter.format.reader import MessageReader, Shape

_INDEX = Shape("II", 6)  # version, count; digests and the five columns of numbers


@dataclass(frozen=True, slots=True)
class PackColumns:
    """The columns of a pack's index (schema/pack.capnp), row i of each for the same chunk, in the order of the digests."""

    digests: bytes
    raw_lengths: Sequence[int]
    offsets: Sequence[int]
    stored_lengths: Sequence[int]
    codecs: Sequence[int]
    within: Sequence[int] = ()
    """Empty where there are no groups."""


VERSION = 1
"""The version of the index that is written, and the only one that is read."""


def encode(columns: PackColumns) -> bytes:
    """The index as a message, laid out like every other message of ours."""
    count = len(columns.raw_lengths)
    # Without groups the message is that of the schema before it knew them: a pack of single chunks stays as it was.
    message = MessageBuilder(1, 6 if columns.within else 5)
    root = message.root
    root.u32(0, VERSION)
    root.u32(4, count)
    root.data(0, columns.digests)
    root.numbers(1, columns.raw_lengths, "I")
    root.numbers(2, columns.offsets, "Q")
    root.numbers(3, columns.stored_lengths, "I")
    root.numbers(4, columns.codecs, "B")
    if columns.within:
        root.numbers(5, columns.within, "I")
    return message.to_bytes()


def decode(message: bytes) -> PackColumns:
    """The columns that `message` holds; that they are consistent is for the caller to check.

    Raises:
        CorruptError: it is no message of this schema, or of another version.
    """
    reader = MessageReader(message)
    segment, at, (version, count, digests, *pointers) = reader.root(_INDEX)
    if version != VERSION:
        raise CorruptError(f"pack index version {version} is not readable by this program (it reads {VERSION})")
    # A row takes 32 bytes of digest, and no column is longer than there are rows.
    if count * 32 > len(message):
        raise CorruptError(f"pack index: {count} rows in a message of {len(message)} bytes")

    def column(number: int, code: str) -> array[int]:
        values = array(code)
        values.frombytes(reader.numbers_of(segment, at + number, pointers[number - 1], values.itemsize, count))
        if sys.byteorder == "big":
            values.byteswap()
        return values

    raw, offsets, stored, codecs, within = map(column, range(1, 6), "IQIBI")
    if any(len(values) != count for values in (raw, offsets, stored, codecs)) or len(within) not in (0, count):
        raise CorruptError(f"pack index: {count} rows, and columns that differ in length")
    return PackColumns(reader.data(segment, at, digests, len(message))[0], raw, offsets, stored, codecs, within)
