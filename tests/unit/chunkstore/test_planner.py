"""Which ranges of a pack are asked for, as laws over arbitrary packs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from snapshotter.chunkstore.planner import STREAMS, Limits, Range, Stream, ahead, coalesce, exactly, follow, grouped, plan
from snapshotter.format.compression import Codec
from snapshotter.format.digest import Digest
from snapshotter.format.pack import PackEntry

LIMITS = Limits(gap=100, range_max=1000, window_first=200, window_max=1600, share=2, beside_max=300, raw_max=10_000)


def entry(number: int, offset: int, length: int) -> PackEntry:
    return PackEntry(Digest(number.to_bytes(32, "big")), length, offset, length, Codec.RAW)


@st.composite
def packs(draw: st.DrawFn) -> list[PackEntry]:
    """Chunks one after another, with holes here and there."""
    entries, offset = [], 0
    for number, (hole, length) in enumerate(
        draw(st.lists(st.tuples(st.sampled_from([0, 0, 0, 50, 150]), st.integers(1, 400)), min_size=1, max_size=60))
    ):
        offset += hole
        entries.append(entry(number, offset, length))
        offset += length
    return entries


def between(pack: list[PackEntry]) -> object:
    def chunks(start: int, end: int) -> Iterator[PackEntry]:
        return (found for found in pack if start <= found.offset < end)

    return chunks


def inside(found: PackEntry, ranges: tuple[Range, ...] | list[Range]) -> bool:
    return any(r.offset <= found.offset and found.offset + found.stored_length <= r.end and found in r.entries for r in ranges)


class TestCoalesce:
    @given(packs(), st.data())
    def test_the_ranges_hold_every_chunk_once_in_order_and_within_bounds(
        self, pack: list[PackEntry], data: st.DataObject
    ) -> None:
        wanted = data.draw(st.permutations(pack).map(lambda all_of: all_of[: len(all_of) // 2 + 1]))
        ranges = coalesce(wanted, LIMITS)
        listed = [found for r in ranges for found in r.entries]
        assert listed == sorted(wanted, key=lambda found: found.offset)
        assert all(inside(found, ranges) for found in wanted)
        assert all(r.length <= LIMITS.range_max or len(r.entries) == 1 for r in ranges)
        assert all(a.end <= b.offset for a, b in pairwise(ranges))

    @given(packs(), st.data())
    def test_no_two_ranges_could_have_been_one(self, pack: list[PackEntry], data: st.DataObject) -> None:
        ranges = coalesce(data.draw(st.lists(st.sampled_from(pack), unique=True)), LIMITS)
        for a, b in pairwise(ranges):
            first = b.entries[0]
            assert first.offset - a.end > LIMITS.gap or first.offset + first.stored_length - a.offset > LIMITS.range_max

    def test_a_contiguous_run_is_one_request(self) -> None:
        assert len(coalesce([entry(n, n * 100, 100) for n in range(10)], LIMITS)) == 1

    def test_a_chunk_longer_than_the_longest_range_gets_one_of_its_own(self) -> None:
        ranges = coalesce([entry(0, 0, 10), entry(1, 10, 5000), entry(2, 5010, 10)], LIMITS)
        assert [(r.offset, r.length) for r in ranges] == [(0, 10), (10, 5000), (5010, 10)]

    def test_overlapping_chunks_of_a_wrong_index_make_no_wrong_ranges(self) -> None:
        ranges = coalesce([entry(0, 0, 300), entry(1, 0, 10), entry(2, 50, 10)], LIMITS)
        assert [(r.offset, r.length) for r in ranges] == [(0, 300)]


class TestGrouped:
    @given(packs(), st.integers(1, 5), st.integers(0, 3000))
    def test_all_ranges_are_asked_for_in_their_order_and_within_bounds(
        self, pack: list[PackEntry], at_once: int, most: int
    ) -> None:
        ranges = coalesce(pack[::2], Limits(gap=0))
        groups = grouped(ranges, at_once, Limits(range_max=most))
        assert [found for group in groups for found in group] == ranges
        assert all(len(group) == 1 or (len(group) <= at_once and sum(r.length for r in group) <= most) for group in groups)
        for a, b in pairwise(groups):
            assert len(a) == at_once or sum(r.length for r in a) + b[0].length > most


class TestFollow:
    def test_a_first_read_looks_a_little_ahead(self) -> None:
        stream, others = follow((), 1000, 1100, LIMITS)
        assert stream == Stream(position=1300, end=1100, used=100)
        assert others == ()

    def test_a_reader_that_goes_on_is_read_ahead_of_by_a_share_of_what_it_has_come_up_to_a_limit(self) -> None:
        streams: tuple[Stream, ...] = ()
        ahead_of, start = [], 0
        for _ in range(12):
            stream, others = follow(streams, start, start + 100, LIMITS)
            ahead_of.append(stream.position - stream.end)
            streams, start = (*others, stream), stream.position
        assert ahead_of[:5] == [200, 200, 350, 575, 912]
        assert ahead_of[-1] == LIMITS.window_max

    def test_a_read_inside_what_is_planned_plans_no_more_until_half_of_it_is_used(self) -> None:
        stream = Stream(position=2000, end=1000, used=1600)
        assert follow((stream,), 1000, 1100, LIMITS)[0] == Stream(2000, 1100, 1700)
        assert follow((stream,), 1500, 1600, LIMITS)[0] == Stream(2700, 1600, 2200)

    def test_a_read_elsewhere_starts_over_and_the_old_reader_is_kept(self) -> None:
        old = Stream(2000, 1200, 1600)
        for start in (50_000, 2000 + LIMITS.gap + 1, 1200 - LIMITS.gap - 1):
            stream, others = follow((old,), start, start + 100, LIMITS)
            assert (stream.used, others) == (100, (old,))

    @given(st.lists(st.tuples(st.integers(0, 100_000), st.integers(1, 1000)), max_size=60))
    def test_streams_stay_few_and_what_is_planned_ahead_bounded(self, reads: list[tuple[int, int]]) -> None:
        streams: tuple[Stream, ...] = ()
        for start, length in reads:
            stream, others = follow(streams, start, start + length, LIMITS)
            assert stream.position >= stream.end >= start + length
            assert stream.position - (start + length) <= 2 * LIMITS.window_max + LIMITS.gap
            streams = (*others, stream)
        assert len(streams) <= STREAMS


class TestPlan:
    @given(packs(), st.data())
    def test_what_is_wanted_is_asked_for_now_and_nothing_twice_or_beyond_bounds(
        self, pack: list[PackEntry], data: st.DataObject
    ) -> None:
        wanted = data.draw(st.lists(st.sampled_from(pack), min_size=1, unique=True))
        new = data.draw(st.lists(st.sampled_from(wanted), unique=True))
        local = data.draw(st.sets(st.sampled_from(pack))) - set(new)
        slots = data.draw(st.integers(0, 3))
        streams = data.draw(
            st.lists(
                st.builds(
                    lambda end, ahead, used: Stream(end + ahead, end, used),
                    st.integers(0, 9000),
                    st.integers(0, 1600),
                    st.integers(0, 9000),
                ),
                max_size=4,
            )
        )
        made = plan(wanted, new, streams, between(pack), local.__contains__, slots, LIMITS)  # type: ignore[arg-type]
        assert all(inside(found, made.now) for found in new)
        listed = [found.digest for r in made.now for found in r.entries]
        assert len(listed) == len(set(listed))
        assert len(made.beside) <= slots
        assert all(r.length <= LIMITS.range_max or len(r.entries) == 1 for r in (*made.now, *made.beside))
        assert not any(found in local for r in (*made.now, *made.beside) for found in r.entries)

    def test_a_first_read_brings_what_follows_in_the_same_request(self) -> None:
        pack = [entry(n, n * 100, 100) for n in range(50)]
        made = plan(pack[10:12], pack[10:12], (), between(pack), lambda found: False, 2, LIMITS)  # type: ignore[arg-type]
        assert [(r.offset, r.length) for r in made.now] == [(1000, 400)]
        assert made.beside == ()

    def test_a_reader_that_goes_on_has_the_rest_of_its_window_asked_for_beside(self) -> None:
        pack = [entry(n, n * 100, 100) for n in range(50)]
        made = plan(pack[10:12], pack[10:12], (Stream(1000, 1000, 1000),), between(pack), lambda found: False, 2, LIMITS)  # type: ignore[arg-type]
        assert [(r.offset, r.end) for r in made.now] == [(1000, 1500)]
        assert [(r.offset, r.end) for r in made.beside] == [(1500, 1800)]
        assert made.streams == (Stream(1800, 1200, 1200),)

    def test_without_a_free_thread_nothing_is_asked_for_beside_and_the_stream_says_so(self) -> None:
        pack = [entry(n, n * 100, 100) for n in range(50)]
        made = plan(pack[10:12], pack[10:12], (Stream(1000, 1000, 1000),), between(pack), lambda found: False, 0, LIMITS)  # type: ignore[arg-type]
        assert made.beside == ()
        assert made.streams == (Stream(1500, 1200, 1200),)

    def test_chunks_in_a_hole_that_is_fetched_anyway_are_taken_along(self) -> None:
        pack = [entry(n, n * 50, 50) for n in range(3)]
        made = plan([pack[0], pack[2]], [pack[0], pack[2]], (), between(pack), lambda found: False, 0, LIMITS)  # type: ignore[arg-type]
        assert [r.entries for r in made.now] == [tuple(pack)]

    def test_nothing_is_read_ahead_without_a_cache(self) -> None:
        pack = [entry(n, n * 500, 100) for n in range(3)]
        assert exactly([pack[0], pack[2]], LIMITS).now == (Range(0, 100, (pack[0],)), Range(1000, 100, (pack[2],)))


def test_reading_ahead_is_bounded_by_what_it_decodes_to() -> None:
    bombs = [PackEntry(Digest(bytes([n]) * 32), 4000, n, 1, Codec.ZSTD) for n in range(100)]
    assert len(ahead(bombs, 1000, LIMITS)) == 2
