"""A message is the same whichever way it is taken out of its builder, and wherever it was made."""

from __future__ import annotations

import mmap

from snapshotter.format.message import Memory, MessageBuilder, MessageStream, Room, Whole


class Crowded:
    """A room of its own memory for every segment, which counts how often memory may go."""

    def __init__(self) -> None:
        self.rests = 0

    def segment(self, size: int) -> mmap.mmap:
        return mmap.mmap(-1, size)

    def rest(self) -> None:
        self.rests += 1


def message(pieces: int, room: Room | None = None) -> MessageBuilder:
    """A message of several segments."""
    built = MessageBuilder(1, 1, room)
    built.root.u64(0, 7)
    for number, slot in enumerate(built.root.structs(0, pieces, 0, 1)):
        slot.data(0, b"%d" % number * 300)
    return built


def test_its_parts_are_all_of_it() -> None:
    for pieces in (0, 1, 500, 5000):
        built = message(pieces)
        whole = built.to_bytes()
        assert len(whole) == built.size
        assert b"".join(map(bytes, built.parts())) == whole
        assert MessageStream(built).read() == whole
        assert list(Whole(whole).parts()) == [whole] == [Whole(whole).to_bytes()]
        assert Whole(whole).size == built.size


def test_where_it_is_made_makes_no_difference() -> None:
    room = Crowded()
    assert message(5000, room).to_bytes() == message(5000, Memory()).to_bytes() == message(5000).to_bytes()
    assert room.rests > 0
