"""Several sources: who is asked for what, and what the error at the end says."""

from __future__ import annotations

import pytest

from snapshotter.chunkstore.base import ChunkCorruptError, ChunkMissingError, SourceUnavailableError
from snapshotter.chunkstore.fallback import Fallback
from tests.support.chunks import StubStore, refs, some_chunks

CHUNKS = some_chunks(6)
WANTED = refs(CHUNKS)


def corrupt(number: int) -> ChunkCorruptError:
    return ChunkCorruptError(WANTED[number].digest, "one", "garbled")


def test_the_next_source_is_asked_only_for_what_the_first_lacks() -> None:
    first, second = StubStore(CHUNKS[:4], "one"), StubStore(CHUNKS, "two")
    assert Fallback([first, second]).get(WANTED) == CHUNKS
    assert second.asked == [[WANTED[4].digest, WANTED[5].digest]]


def test_a_corrupt_chunk_is_had_from_the_next_source_and_the_others_from_the_first() -> None:
    first, second = StubStore(CHUNKS, "one"), StubStore(CHUNKS, "two")
    first.failures = [corrupt(2)]
    assert Fallback([first, second]).get(WANTED) == CHUNKS
    assert second.asked == [[WANTED[2].digest]]


def test_a_source_with_much_that_is_corrupt_is_given_up() -> None:
    first, second = StubStore(CHUNKS, "one"), StubStore(CHUNKS, "two")
    first.failures = [corrupt(number) for number in range(5)]
    assert Fallback([first, second]).get(WANTED) == CHUNKS
    assert len(first.asked) == 3


def test_an_unavailable_source_is_passed_over() -> None:
    first, second = StubStore(CHUNKS, "one"), StubStore(CHUNKS, "two")
    first.failures = [SourceUnavailableError("down")]
    assert Fallback([first, second]).get(WANTED) == CHUNKS


def test_the_error_tells_what_each_source_said_and_unavailable_beats_the_rest() -> None:
    first, second, third = StubStore((), "one"), StubStore((), "two"), StubStore((), "three")
    first.failures = [corrupt(0)]
    second.failures = [SourceUnavailableError("down", retry_after=7)]
    with pytest.raises(SourceUnavailableError, match=r"one: .*garbled; two: down; three: three lacks") as caught:
        Fallback([first, second, third]).get(WANTED[:1])
    assert (caught.value.retryable, caught.value.retry_after) == (True, 7)


def test_it_is_worth_a_retry_if_one_source_is() -> None:
    first, second = StubStore((), "one"), StubStore((), "two")
    first.failures = [SourceUnavailableError("denied", retryable=False)]
    second.failures = [SourceUnavailableError("busy")]
    with pytest.raises(SourceUnavailableError) as caught:
        Fallback([first, second]).get(WANTED[:1])
    assert caught.value.retryable
    first.failures = [SourceUnavailableError("denied", retryable=False)]
    with pytest.raises(SourceUnavailableError) as caught:
        Fallback([first, second]).get(WANTED[:1])
    assert not caught.value.retryable


def test_corrupt_beats_missing() -> None:
    first, second = StubStore((), "one"), StubStore((), "two")
    first.failures = [corrupt(0)]
    with pytest.raises(ChunkCorruptError, match="two: two lacks"):
        Fallback([first, second]).get(WANTED[:1])


def test_an_error_about_a_chunk_that_was_found_in_the_end_does_not_count() -> None:
    first, second = StubStore(CHUNKS[1:], "one"), StubStore(CHUNKS[1:], "two")
    first.failures = [corrupt(1)]
    with pytest.raises(ChunkMissingError) as caught:
        Fallback([first, second]).get(WANTED[:2])
    assert caught.value.digests == {WANTED[0].digest}


def test_without_sources_everything_is_missing() -> None:
    with pytest.raises(ChunkMissingError, match="no source to ask"):
        Fallback([]).get(WANTED)


def test_closing_closes_every_source() -> None:
    sources = [StubStore(), StubStore()]
    Fallback(sources).close()
    assert [source.closed for source in sources] == [1, 1]
