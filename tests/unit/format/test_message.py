"""A message is the same whichever way it is taken out of its builder."""

from __future__ import annotations

from snapshotter.format.message import MessageBuilder


def message(pieces: int) -> MessageBuilder:
    """A message of several segments."""
    built = MessageBuilder(1, 1)
    built.root.u64(0, 7)
    for number, slot in enumerate(built.root.structs(0, pieces, 0, 1)):
        slot.data(0, b"%d" % number * 300)
    return built


def test_taking_it_gives_the_same_bytes() -> None:
    for pieces in (0, 1, 500):
        assert message(pieces).take_bytes() == message(pieces).to_bytes()
