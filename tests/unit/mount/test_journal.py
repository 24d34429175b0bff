"""What a server leaves to its successor: every request that was not answered, and nothing that was."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import InvalidError
from snapshotter.mount import journal, wire
from snapshotter.mount.journal import Journal, State
from snapshotter.mount.wire import Negotiated


@pytest.fixture
def memory() -> Iterator[int]:
    fd = journal.create({"mountpoint": "/l/1"})
    yield fd
    os.close(fd)


def request(unique: int, *, nodeid: int = 2, offset: int = 0, size: int = 4096) -> bytes:
    """A READ as the kernel sends it."""
    head = wire.IN_HEADER.pack(80, wire.Opcode.READ, unique, nodeid, 0, 0, 0, 0, 0)
    return head + struct.pack("<QQIIQII", 0, offset, size, 0, 0, 0, 0)


def land(opened: Journal, unique: int, *, nodeid: int = 2, offset: int = 0, size: int = 4096) -> memoryview:
    data = request(unique, nodeid=nodeid, offset=offset, size=size)
    opened.landing[: len(data)] = data
    return opened.landing[: len(data)]


@contextlib.contextmanager
def opened(memory: int) -> Iterator[Journal]:
    with contextlib.closing(Journal(os.dup(memory))) as found:
        yield found


def test_what_init_agreed_on_and_the_label_outlive_the_server(memory: int) -> None:
    assert journal.read_state(memory) == State({"mountpoint": "/l/1"}, None)
    with opened(memory) as first:
        assert first.negotiated is None
        first.agree(Negotiated(31, 5, 1 << 39))
    assert journal.read_state(memory) == State({"mountpoint": "/l/1"}, Negotiated(31, 5, 1 << 39))
    with opened(memory) as second:
        assert second.negotiated == Negotiated(31, 5, 1 << 39)


def test_the_request_that_landed_last_is_left(memory: int) -> None:
    with opened(memory) as first:
        assert first.unanswered() == []
        land(first, 1).release()
        land(first, 2).release()
    with opened(memory) as second:
        assert second.unanswered() == [(None, request(2))]
        second.forget()
        assert second.unanswered() == []


@given(st.lists(st.booleans(), max_size=60))
def test_what_waits_is_left_and_what_was_answered_is_not(answered: list[bool]) -> None:
    """For every order of requests of which some are answered at once, and some not before the end."""
    memory = journal.create({})
    try:
        waiting = {}
        with opened(memory) as first:
            for unique, at_once in enumerate(answered, 1):
                with land(first, unique) as data:
                    slot = first.keep(data)
                if at_once:
                    first.done(slot)
                else:
                    waiting[slot] = request(unique)
            first.landing[:4] = bytes(4)
        with opened(memory) as second:
            assert dict(second.unanswered()) == waiting
            # a slot of the first is the second's to free, and none is given out twice
            with land(second, 99) as data:
                assert second.keep(data) not in waiting
            for left in waiting:
                second.done(left)
        with opened(memory) as third:
            assert {entry for _, entry in third.unanswered()} <= {request(99)}
    finally:
        os.close(memory)


def test_more_than_fits_is_not_remembered_and_does_no_harm(memory: int) -> None:
    with opened(memory) as first, land(first, 1) as data:
        slots = [first.keep(data) for _ in range(journal.SLOTS)]
        assert len(set(slots)) == journal.SLOTS
        assert first.keep(data) is None
        first.done(None)
        first.done(slots[0])
        assert first.keep(data) == slots[0]
        assert first.keep(memoryview(bytes(200))) is None


def test_other_memory_is_refused(memory: int) -> None:
    with contextlib.ExitStack() as stack:
        other = os.memfd_create("other")
        stack.callback(os.close, other)
        with pytest.raises(InvalidError, match="not the memory"):
            journal.read_state(other)
        os.ftruncate(other, journal.SIZE)
        os.pwrite(other, b"x" * 100, 0)
        with pytest.raises(InvalidError, match="layout"):
            journal.read_state(other)
    os.pwrite(memory, struct.pack("<I", journal.LAYOUT + 1), 8)
    with pytest.raises(InvalidError, match="this release knows"):
        Journal(os.dup(memory))


def test_a_label_has_a_bound() -> None:
    with pytest.raises(InvalidError, match="label"):
        journal.create({"mountpoint": "x" * journal.LABEL_MAX})


def test_nobody_can_shrink_it(memory: int) -> None:
    """A map of what is gone would kill the server (SIGBUS)."""
    with pytest.raises(PermissionError):
        os.ftruncate(memory, 0)


def test_what_is_under_way_whenever_a_server_crashes_is_condemned(memory: int) -> None:
    """Whether it waited in a slot or had just landed, and whether or not the kernel takes it back and hands it out again."""
    for crash in range(journal.CRASHES_MAX):
        with opened(memory) as server:
            assert server.condemned == frozenset()
            server.forget()
            with land(server, wire.UNIQUE_RESEND | 7 if crash else 7) as data:
                server.keep(data)
            with land(server, 1000 + crash) as data:  # an innocent one, which its successor answers
                server.keep(data)
            land(server, wire.UNIQUE_RESEND | 9 if crash else 9).release()
        journal.blame(memory)
    with opened(memory) as server:
        assert server.condemned == {7, 9}
        server.forget()
    journal.blame(memory)
    with opened(memory) as server:
        assert server.condemned == frozenset(), "answered meanwhile"


def test_a_server_that_was_killed_says_nothing_about_its_requests(memory: int) -> None:
    with opened(memory) as server, land(server, 7) as data:
        server.keep(data)
    for _ in range(3 * journal.CRASHES_MAX):
        with opened(memory) as server:
            assert server.condemned == frozenset()


def crash_with(memory: int, unique: int, *, nodeid: int = 2, offset: int = 0, size: int = 4096) -> frozenset[int]:
    """A server crashes while it has this request; what its successor, which answers all that is left, takes for condemned."""
    with opened(memory) as server, land(server, unique, nodeid=nodeid, offset=offset, size=size) as data:
        server.keep(data)
        server.taken()
    journal.blame(memory)
    with opened(memory) as server:
        condemned = server.condemned
        server.forget()
        return condemned


def test_asked_again_for_what_was_condemned_it_takes_one_crash(memory: int) -> None:
    """The kernel asks for the pages of a range one by one after an error, and a caller may try for ever."""
    for _ in range(journal.CRASHES_MAX):
        condemned = crash_with(memory, 7, offset=1 << 20, size=1 << 20)
    assert condemned == {7}
    assert crash_with(memory, 9, offset=(1 << 20) + 4096) == {9}
    assert crash_with(memory, 11, offset=(2 << 20) - 1, size=1 << 20) == {11}
    for unique, innocent in enumerate([{"offset": 4096}, {"offset": 3 << 20}, {"offset": 1 << 20, "nodeid": 3}], start=20):
        assert crash_with(memory, unique, **innocent) == frozenset()


def test_of_what_was_condemned_the_latest_are_remembered(memory: int) -> None:
    count = journal.CONDEMNED + 10
    for number in range(count):
        for _ in range(journal.CRASHES_MAX):
            crash_with(memory, 1000 + number, nodeid=10 + number)
    assert crash_with(memory, 5000, nodeid=10 + count - 1) == {5000}
    assert crash_with(memory, 5002, nodeid=10 + count - journal.CONDEMNED) == {5002}
    assert crash_with(memory, 5004, nodeid=10) == frozenset()


def test_what_no_kernel_sends_is_not_remembered(memory: int) -> None:
    for unique in range(1, 2 * journal.CRASHES_MAX):
        with opened(memory) as server:
            server.landing[:80] = b"\x50" + request(7)[1:4] + bytes([255]) * 76
        journal.blame(memory)
        with opened(memory) as server:
            assert len(server.condemned) == (unique >= journal.CRASHES_MAX)


def test_a_request_that_is_answered_in_between_starts_anew(memory: int) -> None:
    for _ in range(journal.CRASHES_MAX):
        for keeps in (True, False):
            with opened(memory) as server:
                assert server.condemned == frozenset()
                server.forget()
                if keeps:
                    with land(server, 7) as data:
                        server.keep(data)
            journal.blame(memory)


def test_more_suspects_than_there_is_room_for(memory: int) -> None:
    """The old ones are kept, and the memory beyond is left alone."""
    for crash in range(journal.CRASHES_MAX):
        with opened(memory) as server:
            server.forget()
            for number in range(journal.SUSPECTS + 50):
                with land(server, 5 if number == 200 + 100 * (crash > 0) else (crash + 1) * 10_000 + number) as data:
                    server.keep(data)
            server.taken()
        journal.blame(memory)
    with opened(memory) as server:
        assert server.condemned == {5}


def test_what_landed_last_and_is_answered_is_not_left(memory: int) -> None:
    with opened(memory) as server:
        land(server, 1).release()
        server.taken()
    with opened(memory) as server:
        assert server.unanswered() == []
