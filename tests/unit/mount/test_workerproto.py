"""Messages between daemon and worker: there and back, and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter import errors
from snapshotter.chunkstore.base import ChunkMissingError
from snapshotter.errors import InvalidError
from snapshotter.mount import messages, workerproto
from snapshotter.mount.failures import FailureReport
from snapshotter.mount.workerproto import AddMount, Event, Gone, Ready


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize(
    "add",
    [
        AddMount("1", "/path", "name"),
        AddMount("1", "/path", "name", False, {"packs": ["a"], "n": 1}),
    ],
)
def test_add_there_and_back(add: AddMount) -> None:
    assert workerproto.parse_add(json.loads(json.dumps(workerproto.add_message(add)))) == add


@pytest.mark.parametrize(
    "event", [Ready("1", (41, 2, 3)), Ready("1", None, "too old"), Gone("1"), FailureReport("m", "/p", 2, 3, 4, "why", "T", 5)]
)
def test_events_there_and_back(event: Event) -> None:
    assert workerproto.parse_event(json.loads(json.dumps(workerproto.event_message(event)))) == event


@given(
    st.dictionaries(
        st.sampled_from(["event", "mount_id", "negotiated", "ino", "path"]), st.sampled_from(["ready", "failure", 1, None, [1]])
    )
)
def test_other_messages_are_refused(message: dict[str, object]) -> None:
    with contextlib.suppress(InvalidError):
        workerproto.parse_event(message)
    with pytest.raises(InvalidError):
        workerproto.parse_add(message)


@pytest.mark.parametrize("error", [errors.NotFoundError("x"), errors.CorruptError("x"), errors.UnavailableError("x")])
def test_errors_keep_their_category(error: errors.PuzzlefsError) -> None:
    back = messages.parse_error(messages.error_message(1, error))
    assert (type(back), str(back)) == (type(error), "x")


@pytest.mark.parametrize("error", [ValueError("x"), errors.PuzzlefsError("x")])
def test_other_errors_do_too_as_far_as_they_can(error: Exception) -> None:
    assert isinstance(messages.parse_error(messages.error_message(1, error)), InvalidError)


def test_a_subclass_arrives_as_its_category() -> None:
    assert isinstance(messages.parse_error(messages.error_message(1, ChunkMissingError("x"))), errors.NotFoundError)


def test_descriptors_travel_along(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    here, there = os.pipe()
    messages.send(ours, {"do": "add"}, (there,))
    os.close(there)
    received = messages.receive(theirs)
    assert received is not None
    message, (fd,) = received
    assert message == {"do": "add"}
    assert not os.get_inheritable(fd)
    os.write(fd, b"x")
    os.close(fd)
    assert os.read(here, 10) == b"x"
    os.close(here)


def test_bad_packets_are_refused_and_their_descriptors_closed(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    here, there = os.pipe()
    for data in (b"not json", b"[]", b"\xff", b"[" * 10_000):
        socket.send_fds(ours, [data], [there])
        with pytest.raises(InvalidError):
            messages.receive(theirs)
    os.close(there)
    assert os.read(here, 1) == b""
    os.close(here)


def test_the_end_and_too_long_a_message(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    with pytest.raises(InvalidError):
        messages.send(ours, {"x": "y" * messages.MESSAGE_MAX})
    ours.close()
    assert messages.receive(theirs) is None
