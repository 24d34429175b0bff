"""Who fetches a chunk, between processes: each open of the file is one, as far as these locks are concerned."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from snapshotter.chunkstore.cache import ChunkCache
from snapshotter.chunkstore.chain import Node
from snapshotter.chunkstore.claims import Claims
from snapshotter.chunkstore.flying import Flying
from snapshotter.chunkstore.stats import Stats
from snapshotter.format.digest import Digest, sha256
from tests.support.chunks import MemoryBlobs, make_pack, refs, some_chunks

ONE, TWO = sha256(b"one"), sha256(b"two")


def test_a_claim_is_one_processs_until_it_is_given_up(tmp_path: Path) -> None:
    mine, other = Claims(tmp_path), Claims(tmp_path)
    assert mine.take(ONE)
    assert mine.take(ONE), "it is mine already"
    assert not other.take(ONE)
    assert other.take(TWO)
    mine.release([ONE, TWO])
    assert other.take(ONE)
    assert not mine.take(TWO), "giving up what is not mine changes nothing"
    mine.close()
    other.close()


def test_the_claims_of_a_process_that_ends_are_free(tmp_path: Path) -> None:
    mine, other = Claims(tmp_path), Claims(tmp_path)
    mine.take(ONE)
    mine.close()
    assert other.take(ONE)
    other.close()


def test_a_chunk_that_is_written_is_claimed_no_more(tmp_path: Path) -> None:
    mine, other = Claims(tmp_path), Claims(tmp_path)
    cache = ChunkCache(tmp_path, stats=Stats(), claims=mine)
    mine.take(ONE)
    cache.put(ONE, b"one")
    cache.flush()
    assert other.take(ONE)
    cache.close()
    mine.close()
    other.close()


def test_a_disk_that_takes_nothing_gives_claims_up_too(tmp_path: Path) -> None:
    mine, other = Claims(tmp_path), Claims(tmp_path)
    cache = ChunkCache(tmp_path, stats=Stats(), claims=mine)
    (tmp_path / "chunks").mkdir(exist_ok=True)
    (tmp_path / "chunks" / ONE.hex()[:2]).write_text("in the way of the directory")
    mine.take(ONE)
    cache.put(ONE, b"one")
    cache.flush()
    assert other.take(ONE)
    cache.close()
    mine.close()
    other.close()


def test_two_processes_fetch_every_chunk_once(tmp_path: Path) -> None:
    """Two nodes over one directory stand for two workers: what one is fetching the other waits for."""
    chunks = some_chunks(40, size=50_000)
    place, blob, _ = make_pack(chunks)
    reader = MemoryBlobs()
    reader.add(blob)
    reader.before = lambda digest, offset, length: time.sleep(0.05)
    nodes = [Node(tmp_path), Node(tmp_path)]
    nodes[0].fetch_indexes([place], [reader])
    reader.asked.clear()
    try:
        answers: dict[int, list[bytes]] = {}

        def read(number: int, step: int) -> None:
            store = nodes[number].chain([place], [reader])
            answers[number] = [store.get(refs([raw]))[0] for raw in chunks[::step]][::step]

        threads = [threading.Thread(target=read, args=(number, step)) for number, step in ((0, 1), (1, -1))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == {0: chunks, 1: chunks}
        moved = sum(length for _, _, length in reader.asked)
        assert moved < len(blob) * 1.2, f"{moved} bytes of {len(blob)} were fetched"
    finally:
        for node in nodes:
            node.close()


# What is to be fetched.


def is_here(digest: Digest) -> bool:
    return True


def is_not_here(digest: Digest) -> bool:
    return False


def test_what_nobody_brings_is_claimed_and_fetched(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    assert Flying(claims).claim(ONE, is_not_here, wanted=False)
    assert claims.holds(ONE)
    claims.close()


def test_what_another_process_brings_is_not_fetched(tmp_path: Path) -> None:
    mine, other = Claims(tmp_path), Claims(tmp_path)
    other.take(ONE)
    assert not Flying(mine).claim(ONE, is_not_here, wanted=True)
    mine.close()
    other.close()


def test_what_another_process_has_brought_between_the_look_and_the_claim_is_not_fetched_again(tmp_path: Path) -> None:
    mine, other = Claims(tmp_path), Claims(tmp_path)
    assert not Flying(mine).claim(ONE, is_here, wanted=True)
    assert other.take(ONE), "and is left to others"
    mine.close()
    other.close()


def test_what_is_claimed_here_has_come_and_is_fetched_again_only_for_a_reader_who_could_not_use_it(tmp_path: Path) -> None:
    claims = Claims(tmp_path)
    flying = Flying(claims)
    claims.take(ONE)
    assert not flying.claim(ONE, is_not_here, wanted=False), "a reader has it, and is about to keep it"
    assert not flying.claim(ONE, is_here, wanted=True), "it waits to be written"
    assert flying.claim(ONE, is_not_here, wanted=True), "it was corrupt"
    assert claims.holds(ONE)
    claims.close()


def test_who_waits_is_seen_by_the_others_and_not_by_itself(tmp_path: Path) -> None:
    one, other, third = (Claims(tmp_path) for _ in range(3))
    assert one.take(ONE)
    assert not one.awaited()
    with other.awaiting(), third.awaiting():
        with other.awaiting():
            assert one.awaited()
        assert one.awaited()
        assert other.awaited()
        third.close()  # as when its process ends
        assert one.awaited()
        assert not other.awaited()
    assert not one.awaited()
    for claims in (one, other):
        claims.close()
