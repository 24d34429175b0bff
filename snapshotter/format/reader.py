"""Reads Cap'n Proto messages in place: pointers, structs, lists of structs, and Data, each when it is asked for.

`codec` says which field stands where; here is what holds for every schema, by the Cap'n Proto encoding specification
(https://capnproto.org/encoding.html). A message may be laid out by any writer: in several segments, with far pointers, and
with structs that are longer or shorter than ours, since a schema may grow ("missing" fields have their default, zero).

A message may also be hostile. The rule against that: a place is used only after the whole object at it was found to lie
inside its segment, and the segments lie inside the message. Nothing follows pointers on its own, so there is no depth to
bound. That objects may overlap is the caller's concern: it bounds what it collects.

Words are of 8 bytes and counted from the beginning of the message, framing included; pointers are read with the number of
the segment they lie in. Reading changes nothing, so it may be done from several threads.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from snapshotter.errors import CorruptError

SEGMENTS_MAX = 512
"""Most segments in a message: the limit of capnp's own readers of streams, for C++ and for Rust."""

_ROWS_AT_ONCE = 1024
_U64 = struct.Struct("<Q").unpack_from
_STRUCT, _LIST, _FAR = 0, 1, 2
_BYTES, _STRUCTS = 2, 7
_NUMBERS = {1: _BYTES, 2: 3, 4: 4, 8: 5}
"""What a list of numbers of so many bytes is called."""


class Shape:
    """The fields of a struct, as far as they are read: a format for its data section, and its number of pointers.

    Unpacking gives the fields of the data section, then the pointers as they are stored.
    """

    __slots__ = ("data_words", "iter_unpack", "pointers", "size", "unpack", "unpack_from", "zeros")

    def __init__(self, data: str, pointers: int) -> None:
        """`data` is a format of module struct without byte order, whole words long."""
        layout = struct.Struct(f"<{data}{pointers}Q")
        self.size = layout.size
        self.data_words = layout.size // 8 - pointers
        self.pointers = pointers
        self.unpack = layout.unpack
        self.unpack_from = layout.unpack_from
        self.iter_unpack = layout.iter_unpack
        self.zeros = layout.unpack(bytes(layout.size))


class StructList(NamedTuple):
    """A list of structs that lies inside `segment`, from the first struct's first word on."""

    segment: int
    word: int
    length: int
    data_words: int
    pointers: int


_NO_STRUCTS = StructList(0, 0, 0, 0, 0)


def _malformed(what: str) -> CorruptError:
    return CorruptError(f"malformed Cap'n Proto message: {what}")


class Slices(Protocol):
    """Bytes that are somewhere else."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, part: slice) -> bytes:
        """Some of them."""
        ...


class MessageReader:
    """A message in the standard stream framing in `data`, which must stay as it is until `close`.

    Every method raises `CorruptError` where the message is malformed, and nothing else. What follows the last segment is
    not looked at.
    """

    def __init__(self, data: bytes | mmap.mmap | Slices) -> None:
        """Read the table of segments, and nothing else. Of `Slices` nothing else can be read (`folded`)."""
        self._data: bytes | mmap.mmap = data if isinstance(data, bytes | mmap.mmap) else b""
        words = len(data) // 8
        if words < 2:
            raise _malformed(f"{len(data)} bytes")
        count = int.from_bytes(data[:4], "little") + 1
        if count > SEGMENTS_MAX:
            raise _malformed(f"{count} segments, a message has at most {SEGMENTS_MAX}")
        end = (count + 2) // 2
        if end > words:
            raise _malformed("its table of segments is cut off")
        starts, ends = [], []
        for size in struct.unpack(f"<{count}I", data[4 : 4 + 4 * count]):
            starts.append(end)
            end += size
            ends.append(end)
        if end > words:
            raise _malformed(f"its segments have {end} words, the message {words}")
        self._starts = starts
        self._ends = ends

    @property
    def source(self) -> bytes | mmap.mmap:
        """What the message was opened from."""
        return self._data

    def rest(self) -> None:
        """Give back the pages of a map: they are read again when they are needed."""
        if isinstance(self._data, mmap.mmap):
            self._data.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let go of the data. Reading afterwards is a programming error."""
        self._data = b""

    def root(self, shape: Shape) -> tuple[int, int, tuple[Any, ...]]:
        """The struct that the message is about, like `struct`."""
        at = self._starts[0]
        if at == self._ends[0]:
            raise _malformed("its first segment is empty")
        return self.struct(0, at, self._word(at), shape)

    def struct(self, segment: int, at: int, pointer: int, shape: Shape) -> tuple[int, int, tuple[Any, ...]]:
        """The struct that `pointer`, from word `at`, names: its segment, the word of its first pointer, and its fields.

        Fields that it lacks are zero; null is a struct without fields.
        """
        if not pointer:
            return 0, 0, shape.zeros
        # Nearly all pointers are plain ones into their own segment: they are worth a shorter way.
        if pointer & 3:
            segment, target, pointer = self._follow(segment, at, pointer)
            if pointer & 3 != _STRUCT:
                raise _malformed("a pointer to something else where one to a struct is due")
        else:
            target = at + 1 + ((pointer & 0xFFFFFFFF) >> 2)
            if pointer & 0x80000000:
                target -= 1 << 30
        data_words, pointers = pointer >> 32 & 0xFFFF, pointer >> 48
        middle = target + data_words
        if target < self._starts[segment] or middle + pointers > self._ends[segment]:
            raise _malformed("an object outside of its segment")
        if data_words == shape.data_words and pointers >= shape.pointers:
            return segment, middle, self._fields(shape, target * 8)
        return segment, middle, self._unpack(target, data_words, pointers, shape)

    def behind(self, segment: int, at: int, pointer: int, expected: int, shape: Shape) -> tuple[Any, ...] | None:
        """All fields of `shape` that lie where `pointer`, from word `at`, leads; None if it is not `expected`, but for the
        distance, or if the segment ends within.

        For objects that lie behind one another as some writer lays them: whoever asks has to see that they are what they seem.
        """
        if pointer & 3 == _FAR:
            segment, target, pointer = self._follow(segment, at, pointer)
        else:
            target = at + 1 + ((pointer & 0xFFFFFFFF) >> 2)
            if pointer & 0x80000000:
                target -= 1 << 30
        if (pointer ^ expected) & ~0xFFFFFFFC:
            return None
        if target < self._starts[segment] or target + shape.data_words > self._ends[segment]:
            return None
        return self._fields(shape, target * 8)

    def run(self, segment: int, at: int, pointer: int, shape: Shape, count: int) -> Iterator[tuple[Any, ...]] | None:
        """So many times all fields of `shape`, one behind the other, from where `pointer`, from word `at`, leads, or from its
        landing pad on, where it has one; None if the segment ends within. As in `behind`, they may be something else."""
        if pointer & 3 == _FAR:
            segment, target = self._far(pointer, 1)
        else:
            target = at + 1 + ((pointer & 0xFFFFFFFF) >> 2)
            if pointer & 0x80000000:
                target -= 1 << 30
        if target < self._starts[segment] or target + shape.data_words * count > self._ends[segment]:
            return None
        return shape.iter_unpack(self._cut(target * 8, target * 8 + shape.size * count))

    def structs(self, segment: int, at: int, pointer: int) -> StructList:
        """The list of structs that `pointer`, from word `at`, names; null is an empty one.

        Structs without fields take no space, so that `length` may be up to 2^30 whatever the message's size.
        """
        if pointer & 3 == _LIST:
            target = at + 1 + ((pointer & 0xFFFFFFFF) >> 2)
            if pointer & 0x80000000:
                target -= 1 << 30
        elif not pointer:
            return _NO_STRUCTS
        else:
            segment, target, pointer = self._follow(segment, at, pointer)
        if pointer & 3 != _LIST or pointer >> 32 & 7 != _STRUCTS:
            raise _malformed("a pointer to something else where one to a list of structs is due")
        words = pointer >> 35
        if target < self._starts[segment] or target + words >= self._ends[segment]:
            raise _malformed("an object outside of its segment")
        tag = self._word(target)
        count, data_words, pointers = (tag & 0xFFFFFFFF) >> 2, tag >> 32 & 0xFFFF, tag >> 48
        if tag & 3 != _STRUCT or count * (data_words + pointers) > words:
            raise _malformed("a list of structs that are not in it")
        return StructList(segment, target + 1, count, data_words, pointers)

    def data(self, segment: int, at: int, pointer: int, limit: int) -> tuple[bytes, int]:
        """The Data that `pointer`, from word `at`, names, cut off after `limit` bytes, and its whole length; null is empty."""
        if pointer & 3 == _LIST:
            target = at + 1 + ((pointer & 0xFFFFFFFF) >> 2)
            if pointer & 0x80000000:
                target -= 1 << 30
        elif not pointer:
            return b"", 0
        else:
            segment, target, pointer = self._follow(segment, at, pointer)
        if pointer & 3 != _LIST or pointer >> 32 & 7 != _BYTES:
            raise _malformed("a pointer to something else where one to bytes is due")
        length = pointer >> 35
        start = target * 8
        if target < self._starts[segment] or start + length > self._ends[segment] * 8:
            raise _malformed("an object outside of its segment")
        return self._cut(start, start + (length if length <= limit else limit)), length

    def numbers_of(self, segment: int, at: int, pointer: int, size: int, limit: int) -> bytes:
        """The numbers, of `size` bytes each, of the list that `pointer`, from word `at`, names, as they lie; null is none.

        More than `limit` of them are malformed, and so is a list of something else, also one of structs that begin with such a
        number.
        """
        if not pointer:
            return b""
        segment, target, pointer = self._follow(segment, at, pointer)
        if pointer & 3 != _LIST or pointer >> 32 & 7 != _NUMBERS[size]:
            raise _malformed(f"a pointer to something else where one to numbers of {size} bytes is due")
        if pointer >> 35 > limit:
            raise _malformed(f"{pointer >> 35} numbers where at most {limit} are due")
        start, length = target * 8, (pointer >> 35) * size
        if target < self._starts[segment] or start + length > self._ends[segment] * 8:
            raise _malformed("an object outside of its segment")
        return self._cut(start, start + length)

    def row(self, found: StructList, row: int, shape: Shape) -> tuple[Any, ...]:
        """The fields of the struct in `row` of a list; those that the list lacks are zero."""
        _, word, count, data_words, pointers = found
        if not 0 <= row < count:
            raise IndexError(f"row {row} of {count}")
        if data_words == shape.data_words and pointers >= shape.pointers:
            return self._fields(shape, (word + row * (data_words + pointers)) * 8)
        return self._unpack(word + row * (data_words + pointers), data_words, pointers, shape)

    def numbers(self, found: StructList) -> Sequence[int]:
        """The first word of each struct in a list, as an unsigned number; 0 where structs have no data."""
        _, word, count, data_words, pointers = found
        step = data_words + pointers
        if not data_words:
            return (0,) * count
        words: Sequence[int] = struct.unpack(f"<{count * step}Q", self._cut(word * 8, (word + count * step) * 8))
        return words if step == 1 else words[::step]

    def rows(self, found: StructList, shape: Shape) -> Iterator[tuple[Any, ...]]:
        """The fields of each struct in a list, in order; those that the list lacks are zero."""
        _, word, count, data_words, pointers = found
        if data_words == shape.data_words and pointers == shape.pointers:
            if count <= _ROWS_AT_ONCE:
                return shape.iter_unpack(self._cut(word * 8, word * 8 + count * shape.size))
            return self._batches(word * 8, count, shape)
        return self._fitted_rows(found, shape)

    def _batches(self, start: int, count: int, shape: Shape) -> Iterator[tuple[Any, ...]]:
        end = start + count * shape.size
        for at in range(start, end, _ROWS_AT_ONCE * shape.size):
            yield from shape.iter_unpack(self._cut(at, min(at + _ROWS_AT_ONCE * shape.size, end)))

    def _fitted_rows(self, found: StructList, shape: Shape) -> Iterator[tuple[Any, ...]]:
        _, word, count, data_words, pointers = found
        step = data_words + pointers
        for row in range(count):
            yield self._unpack(word + row * step, data_words, pointers, shape)

    def _unpack(self, word: int, data_words: int, pointers: int, shape: Shape) -> tuple[Any, ...]:
        fits = (
            pointers >= shape.pointers
            if data_words == shape.data_words
            else data_words > shape.data_words and not shape.pointers
        )
        if fits:
            return self._fields(shape, word * 8)
        return shape.unpack(self._fitted(word, data_words, pointers, shape))

    def _fitted(self, word: int, data_words: int, pointers: int, shape: Shape) -> bytes:
        """A struct's sections cut or filled up to the lengths of `shape`."""
        middle = word + data_words
        data = self._cut(word * 8, (word + min(data_words, shape.data_words)) * 8)
        named = self._cut(middle * 8, (middle + min(pointers, shape.pointers)) * 8)
        return (data.ljust(shape.data_words * 8, b"\0") + named).ljust(shape.size, b"\0")

    # How the bytes are taken: of places that were checked by whoever found the object that they belong to.

    def _fields(self, shape: Shape, start: int) -> tuple[Any, ...]:
        return shape.unpack_from(self._data, start)

    def _cut(self, start: int, end: int) -> bytes:
        return self._data[start:end]

    def _word(self, at: int) -> int:
        word: int = _U64(self._data, at * 8)[0]
        return word

    def _check(self, segment: int, target: int, words: int) -> None:
        if target < self._starts[segment] or target + words > self._ends[segment]:
            raise _malformed("an object outside of its segment")

    def _follow(self, segment: int, at: int, pointer: int) -> tuple[int, int, int]:
        """Where `pointer` in word `at` leads: segment, word, and the pointer that tells what lies there. Bounds unchecked.

        At most one landing pad is used, of one word or of two; a pad that leads to another one is malformed.
        """
        if pointer & 3 == _FAR:
            segment, pad = self._far(pointer, 2 if pointer & 4 else 1)
            double, pointer, at = pointer & 4, self._word(pad), pad
            if double:
                if pointer & 7 != _FAR:
                    raise _malformed("a landing pad of two words that does not begin with a far pointer")
                segment, target = self._far(pointer, 0)
                return segment, target, self._word(pad + 1)
        offset = (pointer & 0xFFFFFFFF) >> 2
        if offset >= 1 << 29:
            offset -= 1 << 30
        return segment, at + 1 + offset, pointer

    def _far(self, pointer: int, words: int) -> tuple[int, int]:
        """The segment and word that a far pointer names, where `words` words must be."""
        segment = pointer >> 32
        if segment >= len(self._starts):
            raise _malformed("a far pointer into a segment that does not exist")
        target = self._starts[segment] + ((pointer & 0xFFFFFFFF) >> 3)
        self._check(segment, target, words)
        return segment, target
