"""Writes Cap'n Proto messages with a layout of its own rules, because the layout is part of the canonical form.

pycapnp's allocator places objects differently and may change with its version, so it does not write ours. The rules are
those of the allocator that upstream's implementation uses (capnp for Rust, ``HeapAllocator``), so that equal content gives
equal bytes there and here:

* Word 0 of segment 0 is the root pointer.
* An object of n words goes to the end of the segment that holds the pointer to it, if n words are free there.
* Otherwise n + 1 words are taken at the end of the first segment that has them free: a landing pad, then the object; the
  pointer becomes a single far pointer to the pad.
* If no segment has them, a new one of max(n + 1, next) words is made. `next` is 1024 at first and grows by the size of
  every segment made.
* Only the used part of each segment is written, in the standard stream framing.

Pointer encodings are those of the Cap'n Proto encoding specification. Places are (segment, word) pairs.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence

_FIRST_SEGMENT_WORDS = 1024
_PUT_POINTER = struct.Struct("<II").pack_into
_PUT_U16 = struct.Struct("<H").pack_into
_PUT_U32 = struct.Struct("<I").pack_into
_PUT_U64 = struct.Struct("<Q").pack_into
_PUT_I64 = struct.Struct("<q").pack_into

_FAR = 2
LIST_OF_BYTES = 2
LIST_OF_STRUCTS = 7
_LIST_SIZES = {"B": 2, "I": 4, "Q": 5}


class Segment:
    """One segment: its number, its bytes so far (whole words), and how many words may still be allocated."""

    __slots__ = ("data", "free", "number")

    def __init__(self, number: int, capacity: int) -> None:
        self.number = number
        self.free = capacity
        self.data = bytearray()

    def take(self, words: int) -> int:
        """Allocate `words` zeroed words; the first one's number."""
        at = len(self.data) // 8
        self.data += bytes(8 * words)
        self.free -= words
        return at


class Struct:
    """A struct that has been allocated: data fields are set by byte offset, pointers by number."""

    __slots__ = ("_data_words", "message", "segment", "word")

    def __init__(self, message: MessageBuilder, segment: Segment, word: int, data_words: int) -> None:
        self.message = message
        self.segment = segment
        self.word = word
        self._data_words = data_words

    def u16(self, offset: int, value: int) -> None:
        """Set 16 bits at byte `offset` of the data section."""
        _PUT_U16(self.segment.data, self.word * 8 + offset, value)

    def u32(self, offset: int, value: int) -> None:
        """Set 32 bits at byte `offset` of the data section."""
        _PUT_U32(self.segment.data, self.word * 8 + offset, value)

    def u64(self, offset: int, value: int) -> None:
        """Set 64 bits at byte `offset` of the data section."""
        _PUT_U64(self.segment.data, self.word * 8 + offset, value)

    def i64(self, offset: int, value: int) -> None:
        """Set 64 bits, signed, at byte `offset` of the data section."""
        _PUT_I64(self.segment.data, self.word * 8 + offset, value)

    def struct(self, pointer: int, data_words: int, pointers: int) -> Struct:
        """Allocate a struct of that size and let pointer number `pointer` name it."""
        at = self.word + self._data_words + pointer
        return self.message.new_struct(self.segment, at, data_words, pointers)

    def structs(self, pointer: int, count: int, data_words: int, pointers: int) -> Iterator[Struct]:
        """Allocate a list of `count` structs of that size and let pointer number `pointer` name it."""
        at = self.word + self._data_words + pointer
        return self.message.new_structs(self.segment, at, count, data_words, pointers)

    def numbers(self, pointer: int, values: Sequence[int], typecode: str) -> None:
        """Store a list of unsigned integers (`typecode` as in module array) and let pointer number `pointer` name it."""
        at = self.word + self._data_words + pointer
        self.message.new_numbers(self.segment, at, values, typecode)

    def data(self, pointer: int, value: bytes) -> None:
        """Store `value` as Data and let pointer number `pointer` name it."""
        at = self.word + self._data_words + pointer
        self.message.new_data(self.segment, at, value)


class MessageBuilder:
    """A message that grows by allocation in the order of the calls; `to_bytes` ends it."""

    def __init__(self, data_words: int, pointers: int) -> None:
        """Begin a message whose root is a struct of that size."""
        self._segments: list[Segment] = []
        self._next = _FIRST_SEGMENT_WORDS
        self._full = 0
        first = self._new_segment(1)
        first.take(1)
        self.root = self.new_struct(first, 0, data_words, pointers)

    def new_struct(self, segment: Segment, at: int, data_words: int, pointers: int) -> Struct:
        """Allocate a struct for the pointer in word `at` of `segment`."""
        place, word = self._allocate(segment, at, data_words + pointers, 0, data_words | pointers << 16)
        return Struct(self, place, word, data_words)

    def new_structs(self, segment: Segment, at: int, count: int, data_words: int, pointers: int) -> Iterator[Struct]:
        """Allocate a list of structs for the pointer in word `at` of `segment`."""
        size = data_words + pointers
        words = count * size
        place, word = self._allocate(segment, at, words + 1, 1, LIST_OF_STRUCTS | words << 3)
        _PUT_POINTER(place.data, word * 8, count << 2, data_words | pointers << 16)
        return (Struct(self, place, word + 1 + i * size, data_words) for i in range(count))

    def new_data(self, segment: Segment, at: int, value: bytes) -> None:
        """Store `value` for the pointer in word `at` of `segment`."""
        words = -(-len(value) // 8)
        place, word = self._allocate(segment, at, words, 1, LIST_OF_BYTES | len(value) << 3)
        place.data[word * 8 : word * 8 + len(value)] = value

    def new_numbers(self, segment: Segment, at: int, values: Sequence[int], typecode: str) -> None:
        """Store a list of unsigned integers for the pointer in word `at` of `segment`."""
        stored = struct.pack(f"<{len(values)}{typecode}", *values)
        place, word = self._allocate(segment, at, -(-len(stored) // 8), 1, _LIST_SIZES[typecode] | len(values) << 3)
        place.data[word * 8 : word * 8 + len(stored)] = stored

    def graft(self, segment: Segment, at: int, words: int, pointer: int, piece: bytes) -> int:
        """Allocate several objects at once: `piece`, whose first `words` words are the object for the pointer in word `at`.

        The others are those that it points to and so on, in the order of their allocation. They must follow one another
        without gap, as they do wherever one segment takes all of them. `pointer` is the one to the first object, with
        offset 0. Returns the pointer for the caller to store; 0, and nothing is done, where one segment does not take all.
        """
        total = len(piece) // 8
        free = segment.free
        if free >= words:
            if free < total:
                return 0
            offset = len(segment.data) // 8 - at - 1
            segment.data += piece
            segment.free = free - total
            return pointer + (offset << 2)
        place = self._first_fit(words + 1)
        if place.free <= total:
            return 0
        pad = len(place.data)
        place.data += pointer.to_bytes(8, "little")
        place.data += piece
        place.free -= total + 1
        return pad | _FAR | place.number << 32

    def parts(self) -> Iterator[bytes | bytearray]:
        """The message in the standard stream framing: number of segments less one, their lengths in words, the segments."""
        lengths = [len(segment.data) // 8 for segment in self._segments]
        header = struct.pack(f"<I{len(lengths)}I", len(lengths) - 1, *lengths)
        yield header + bytes(-len(header) % 8)
        for segment in self._segments:
            yield segment.data

    def to_bytes(self) -> bytes:
        """`parts` as one."""
        return b"".join(self.parts())

    def take_bytes(self) -> bytes:
        """`to_bytes`, once: each segment is let go of as soon as it is copied, so that a large message is not there twice."""
        whole = io.BytesIO()
        for part in self.parts():
            whole.write(part)
            if isinstance(part, bytearray):
                part.clear()
        self._segments.clear()
        return whole.getvalue()

    def _allocate(self, segment: Segment, at: int, words: int, kind: int, size: int) -> tuple[Segment, int]:
        """Take `words` words for the pointer in word `at`, write it (low bits `kind`, upper half `size`); where they are."""
        if segment.free >= words:
            word = segment.take(words)
            _PUT_POINTER(segment.data, at * 8, ((word - at - 1) << 2 | kind) & 0xFFFFFFFF, size)
            return segment, word
        place = self._first_fit(words + 1)
        pad = place.take(words + 1)
        _PUT_POINTER(place.data, pad * 8, kind, size)
        _PUT_POINTER(segment.data, at * 8, pad << 3 | _FAR, place.number)
        return place, pad + 1

    def _first_fit(self, words: int) -> Segment:
        """The first segment that has `words` words free. Those at the front with less than two never will again: skip them."""
        while self._full < len(self._segments) and self._segments[self._full].free < 2:
            self._full += 1
        for segment in self._segments[self._full :]:
            if segment.free >= words:
                return segment
        return self._new_segment(words)

    def _new_segment(self, words: int) -> Segment:
        capacity = max(words, self._next)
        self._next += capacity
        segment = Segment(len(self._segments), capacity)
        self._segments.append(segment)
        return segment
