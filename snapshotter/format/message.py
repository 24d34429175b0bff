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
import mmap
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

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


_PART = 1 << 20
"""Most bytes of a message that are handed over at a time."""


class Room(Protocol):
    """Where a message is while it is made."""

    def segment(self, size: int) -> bytearray | mmap.mmap:
        """So many bytes, all zero, for one segment."""
        ...

    def rest(self) -> None:
        """Called now and then, while the message is made and while it is read: memory that is not in use may go."""
        ...


class Memory:
    """A `Room` in memory."""

    def segment(self, size: int) -> bytearray | mmap.mmap:
        """See `Room`. What is not used of a large one takes none."""
        return bytearray(size) if size < _PART else mmap.mmap(-1, size)

    def rest(self) -> None:
        """All of it is in use."""


class Message(Protocol):
    """The bytes of a message, for those who need not have all of them at once."""

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def parts(self) -> Iterator[bytes | memoryview]:
        """All of them, in order; each part is good until the next one is asked for."""
        ...

    def to_bytes(self) -> bytes:
        """All of them as one."""
        ...


class Whole:
    """A `Message` that is in memory."""

    def __init__(self, message: bytes) -> None:
        """All of its bytes."""
        self._message = message

    @property
    def size(self) -> int:
        """See `Message`."""
        return len(self._message)

    def parts(self) -> Iterator[bytes | memoryview]:
        """See `Message`."""
        yield self._message

    def to_bytes(self) -> bytes:
        """See `Message`."""
        return self._message


class MessageStream(io.RawIOBase):
    """Reads a message, from its beginning to its end."""

    def __init__(self, message: Message) -> None:
        """Reads `message`."""
        self._parts = message.parts()
        self._part: bytes | memoryview = b""
        self._at = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """See `io.RawIOBase`."""
        if self._at == len(self._part):
            self._part, self._at = next(self._parts, b""), 0
        count = min(len(buffer), len(self._part) - self._at)
        buffer[:count] = self._part[self._at : self._at + count]
        self._at += count
        return count


class Segment:
    """One segment: its number, its bytes, how many of its words are allocated, and how many more may be."""

    __slots__ = ("data", "free", "number", "used")

    def __init__(self, number: int, capacity: int, data: bytearray | mmap.mmap) -> None:
        self.number = number
        self.used = 0
        self.free = capacity
        self.data = data

    def take(self, words: int) -> int:
        """Allocate `words` zeroed words; the first one's number."""
        at = self.used
        self.used += words
        self.free -= words
        return at

    def append(self, piece: bytes) -> None:
        """Allocate as many words as `piece` has, for it."""
        start = self.used * 8
        self.data[start : start + len(piece)] = piece
        self.take(len(piece) // 8)


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
    """A message that grows by allocation in the order of the calls. It is a `Message` when all have been made."""

    def __init__(self, data_words: int, pointers: int, room: Room | None = None) -> None:
        """Begin a message whose root is a struct of that size; in memory, if there is no other `room`."""
        self._room = room or Memory()
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
            offset = segment.used - at - 1
            segment.append(piece)
            return pointer + (offset << 2)
        place = self._first_fit(words + 1)
        if place.free <= total:
            return 0
        pad = place.used << 3
        place.append(pointer.to_bytes(8, "little"))
        place.append(piece)
        return pad | _FAR | place.number << 32

    def rest(self) -> None:
        """To be called now and then while much is added: see `Room`."""
        self._room.rest()

    def _header(self) -> bytes:
        lengths = [segment.used for segment in self._segments]
        header = struct.pack(f"<I{len(lengths)}I", len(lengths) - 1, *lengths)
        return header + bytes(-len(header) % 8)

    @property
    def size(self) -> int:
        """See `Message`."""
        return len(self._header()) + sum(8 * segment.used for segment in self._segments)

    def parts(self) -> Iterator[bytes | memoryview]:
        """The message in the standard stream framing: number of segments less one, their lengths in words, the segments."""
        yield self._header()
        for segment in self._segments:
            end = 8 * segment.used
            with memoryview(segment.data) as view:
                for start in range(0, end, _PART):
                    with view[start : min(start + _PART, end)] as part:
                        yield part
                    self._room.rest()

    def to_bytes(self) -> bytes:
        """See `Message`."""
        return b"".join(map(bytes, self.parts()))

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
        segment = Segment(len(self._segments), capacity, self._room.segment(8 * capacity))
        self._segments.append(segment)
        return segment
