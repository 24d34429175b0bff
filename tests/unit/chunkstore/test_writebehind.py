"""Writing behind reads: when, in what order, and what can be had of the queue meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from snapshotter.chunkstore.writebehind import Patience, WriteBehind
from snapshotter.format.digest import Digest, sha256
from tests.support.chunks import some_chunks

CHUNKS = some_chunks(6)
NAMES = [sha256(raw) for raw in CHUNKS]
NEVER = Patience(quiet=3600, longest=3600, look=0.001)


class Written:
    """What was written, in order, and a way to wait for it."""

    def __init__(self) -> None:
        self.names: list[Digest] = []
        self._more = threading.Condition()

    def __call__(self, digest: Digest, raw: bytes) -> None:
        assert raw == CHUNKS[NAMES.index(digest)]
        with self._more:
            self.names.append(digest)
            self._more.notify_all()

    def wait_for(self, count: int) -> list[Digest]:
        with self._more:
            assert self._more.wait_for(lambda: len(self.names) >= count, 10)
            return list(self.names)


@pytest.fixture
def written() -> Written:
    return Written()


@pytest.fixture
def make(written: Written) -> Iterator[Callable[..., WriteBehind]]:
    made: list[WriteBehind] = []

    def writer(**options: object) -> WriteBehind:
        made.append(WriteBehind(written, **options))  # type: ignore[arg-type]
        return made[-1]

    yield writer
    for each in made:
        each.close()


def put(writer: WriteBehind, *numbers: int) -> None:
    for number in numbers:
        assert writer.put(NAMES[number], CHUNKS[number])


def test_what_waits_can_be_read_and_is_written_when_it_is_flushed(make: Callable[..., WriteBehind], written: Written) -> None:
    writer = make(patience=NEVER)
    put(writer, 2, 0, 2)
    assert writer.peek(NAMES[2]) == CHUNKS[2]
    assert writer.peek(NAMES[1]) is None
    assert written.names == []
    writer.flush()
    assert written.names == [NAMES[2], NAMES[0]]
    assert writer.peek(NAMES[2]) is None


def test_closing_writes_what_waits_and_nothing_is_taken_afterwards(make: Callable[..., WriteBehind], written: Written) -> None:
    writer = make(patience=NEVER)
    put(writer, 0, 1)
    writer.close()
    assert written.names == NAMES[:2]
    assert not writer.put(NAMES[2], CHUNKS[2])


def test_it_is_written_once_nothing_was_put_or_read_for_a_moment(make: Callable[..., WriteBehind], written: Written) -> None:
    now = [0.0]
    writer = make(patience=Patience(quiet=5, longest=3600, look=0.001), clock=lambda: now[0])
    put(writer, 0)
    now[0] = 4
    writer.busy()
    now[0] = 8
    put(writer, 1)
    assert written.names == []
    now[0] = 13
    assert written.wait_for(2) == NAMES[:2]


def test_nothing_waits_longer_than_is_said_however_busy_it_is(make: Callable[..., WriteBehind], written: Written) -> None:
    now = [0.0]
    writer = make(patience=Patience(quiet=3600, longest=10, look=0.001), clock=lambda: now[0])
    put(writer, 0)
    now[0] = 5
    put(writer, 1)
    now[0] = 10
    assert written.wait_for(1) == NAMES[:1]
    assert writer.peek(NAMES[1]) == CHUNKS[1]


def test_a_queue_that_is_nearly_full_is_written_and_a_full_one_takes_nothing(
    make: Callable[..., WriteBehind], written: Written
) -> None:
    writer = make(max_bytes=len(CHUNKS[0]) + len(CHUNKS[1]), patience=NEVER)
    put(writer, 0)
    release = threading.Event()
    writer._write = lambda digest, raw: (release.wait(10), written(digest, raw))  # type: ignore[assignment,func-returns-value]
    put(writer, 1)
    assert not writer.put(NAMES[2], CHUNKS[2])
    release.set()
    assert written.wait_for(1)[0] == NAMES[0]


def test_it_is_written_as_soon_as_somebody_is_in_a_hurry(make: Callable[..., WriteBehind], written: Written) -> None:
    hurry = threading.Event()
    writer = make(patience=NEVER, hurried=hurry.is_set)
    put(writer, 0, 1)
    assert written.names == []
    hurry.set()
    assert written.wait_for(2) == NAMES[:2]
