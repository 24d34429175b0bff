"""What is brought before anybody asks for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from snapshotter.chunkstore.base import ChunkRef, Foreseeing
from snapshotter.chunkstore.chain import Node
from snapshotter.chunkstore.foreseen import Foreseen
from snapshotter.chunkstore.prefetch import Start
from snapshotter.chunkstore.recorder import Recorded
from snapshotter.daemon.startwindow import Started, StartWindow
from snapshotter.errors import UnavailableError
from snapshotter.format.digest import Digest, sha256
from tests.support.chunks import MemoryBlobs, make_pack, refs, some_chunks

CHUNKS = some_chunks(40)
PLACE, PACK, ENTRIES = make_pack(CHUNKS)
PATIENCE = 10


class Setup:
    """A worker's chain over one pack in memory."""

    def __init__(self, root: Path) -> None:
        self.blobs = MemoryBlobs()
        self.blobs.add(PACK)
        self.node = Node(root, read_timeout=PATIENCE)
        self.node.fetch_indexes([PLACE], [self.blobs])
        self.blobs.asked.clear()
        chain = self.node.chain([PLACE], [self.blobs])
        assert isinstance(chain, Foreseen)
        self.chain = chain

    def settle(self) -> None:
        """Wait until everything that was begun has ended."""
        self.node.pool.close()
        self.node.cache.flush()


@pytest.fixture
def setup(tmp_path: Path) -> Iterator[Setup]:
    made = Setup(tmp_path)
    yield made
    made.node.close()


def test_what_is_expected_comes_and_is_not_asked_for_again(setup: Setup) -> None:
    setup.chain.expect(refs([*CHUNKS[4:10], *CHUNKS[30:33]]))
    setup.settle()
    assert sorted(offset for _, offset, _ in setup.blobs.asked) == [ENTRIES[4].offset, ENTRIES[30].offset]
    assert setup.chain.get(refs(CHUNKS[4:10])) == CHUNKS[4:10]
    assert len(setup.blobs.asked) == 2


def test_while_a_recorded_start_is_on_its_way_what_is_read_is_told(setup: Setup) -> None:
    go_on = threading.Event()

    def wait(digest: Digest, offset: int, length: int) -> None:
        assert go_on.wait(PATIENCE), "nobody let the source go on"

    setup.blobs.before = wait
    chain = setup.node.chain([PLACE], [setup.blobs], "layer")
    other = setup.node.chain([PLACE], [setup.blobs], "another layer")
    assert isinstance(chain, Foreseeing)
    assert isinstance(other, Foreseeing)
    assert not chain.told()
    setup.node.bring([PLACE], [setup.blobs], Start("layer", profile=PLACE.pack))
    try:
        assert chain.told()
        assert not other.told()
    finally:
        go_on.set()
        setup.node.settle()
    assert not chain.told()


def test_what_is_looked_at_is_no_read(setup: Setup, tmp_path: Path) -> None:
    recorded = Recorded(setup.chain, tmp_path / "record")
    assert recorded.look(refs(CHUNKS[:2])) == CHUNKS[:2]
    assert recorded.get(refs(CHUNKS[2:3])) == CHUNKS[2:3]
    recorded.close()
    assert len((tmp_path / "record").read_text().splitlines()) == 1


def test_a_read_waits_for_the_chunk_that_it_wants_and_for_no_other(setup: Setup) -> None:
    release = threading.Event()

    def hold_the_second(digest: Digest, offset: int, length: int) -> None:
        if offset >= ENTRIES[30].offset:
            assert release.wait(PATIENCE)

    setup.blobs.before = hold_the_second
    setup.chain.expect(refs([CHUNKS[4], CHUNKS[30]]))
    try:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(setup.chain.get, refs(CHUNKS[4:5])).result(PATIENCE) == CHUNKS[4:5]
    finally:
        release.set()
    setup.settle()
    assert len(setup.blobs.asked) == 2


def test_what_does_not_come_is_fetched_when_it_is_read(setup: Setup) -> None:
    failing = threading.Event()
    failing.set()

    def fail_first(*_: object) -> None:
        if failing.is_set():
            failing.clear()
            raise UnavailableError("cut")

    setup.blobs.before = fail_first
    setup.chain.expect(refs(CHUNKS[4:10]))
    assert setup.chain.get(refs(CHUNKS[4:10])) == CHUNKS[4:10]


def test_what_is_in_no_pack_fails_nobody_and_the_rest_comes(setup: Setup) -> None:
    setup.chain.expect([ChunkRef(sha256(b"nobody has this")), *refs(CHUNKS[:2]), ChunkRef(sha256(CHUNKS[5]), compressed=True)])
    setup.settle()
    assert len(setup.blobs.asked) == 1
    assert setup.chain.get(refs(CHUNKS[:2])) == CHUNKS[:2]


def test_after_the_end_nothing_is_promised(setup: Setup) -> None:
    setup.node.pool.close()
    setup.chain.expect(refs(CHUNKS[:2]))
    assert setup.blobs.asked == []
    assert setup.chain.get(refs(CHUNKS[:2])) == CHUNKS[:2]


def test_it_is_neither_read_nor_recorded_and_begins_no_start(setup: Setup, tmp_path: Path) -> None:
    record = tmp_path / "record"
    window = StartWindow(tmp_path, profile=False)
    store = Recorded(Started(setup.chain, window), record)
    assert isinstance(store, Foreseeing)
    store.expect(refs(CHUNKS[:3]))
    setup.settle()
    assert len(setup.blobs.asked) == 1
    assert record.read_bytes() == b""
    assert setup.node.report()["reads"]["read"]["counts"] == [0] * 17
    window.end()
    store.close()


def test_a_read_that_waited_for_what_failed_at_another_source_asks_its_own(tmp_path: Path) -> None:
    """What is expected is asked of the first source, which does not have it: the reader has it from the second."""
    entered, release = threading.Event(), threading.Event()
    first, second = MemoryBlobs("first"), MemoryBlobs("second")
    second.add(PACK)

    def hold(*_: object) -> None:
        entered.set()
        assert release.wait(PATIENCE)

    node = Node(tmp_path, read_timeout=PATIENCE)
    node.fetch_indexes([PLACE], [second])
    chain = node.chain([PLACE], [first, second])
    assert isinstance(chain, Foreseen)
    try:
        first.before = hold
        chain.expect(refs(CHUNKS[4:6]))
        assert entered.wait(PATIENCE)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(chain.get, refs(CHUNKS[4:6]))
            release.set()
            assert waiting.result(PATIENCE) == CHUNKS[4:6]
        before = len(first.asked)
        chain.expect(refs(CHUNKS[20:22]))
        assert chain.get(refs(CHUNKS[20:22])) == CHUNKS[20:22]
        assert len(first.asked) == before, "who had lacked something is not asked first again"
    finally:
        node.close()
