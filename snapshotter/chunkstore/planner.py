"""Which bytes of a pack to ask for: pure functions over the places of chunks.

Two costs are weighed: a request costs a round trip (1 to 50 ms), a byte costs bandwidth (25 bytes a µs at 200 Mbit/s). So a
hole smaller than what the link moves in a few milliseconds is fetched along with its neighbours (`Limits.gap`), and a reader
that moves forward through the pack, which is in walk order, has what follows fetched ahead of it.

How far ahead is a share of how far it has come (`Limits.share`): a start reads some libraries from front to back and stops at
their ends, so what is read ahead in vain stays a share of what was read, while a reader of everything soon has the longest
window. Nothing is read ahead of a first read (`Limits.window_first`): what a start reads next is better told from the files
(`mount.foresight.companions`), and where a round trip costs more than a chunk, the link's own figures say so (`link`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from snapshotter.format.pack import PackEntry

_KIB = 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """All in stored (encoded) bytes but `raw_max`.

    `range_max` is the longest range that is made of several chunks (one longer chunk still gets a range of its own): it
    bounds what a request holds in memory and how long its first chunk waits for its last. A window begins as
    `window_first` and grows to one `share`-th of what the reader has come, at most `window_max`. `beside_max` is how much
    read-ahead travels in the same request as what was asked for; the rest is asked for beside it, so that the reader does
    not wait for it. `raw_max` bounds the decoded bytes that are read ahead at once, against packs that decode to
    thousands of times their size.
    """

    gap: int = 16 * _KIB
    range_max: int = 2048 * _KIB
    window_first: int = 0
    window_max: int = 4096 * _KIB
    share: int = 8
    beside_max: int = 128 * _KIB
    raw_max: int = 32768 * _KIB

    def window(self, used: int) -> int:
        """How far to read ahead of a reader that has come `used` bytes."""
        return min(self.window_max, max(self.window_first, used // self.share))


@dataclass(frozen=True, slots=True)
class Range:
    """One request: `length` bytes of the pack from `offset` on, and the chunks that lie in it, by offset."""

    offset: int
    length: int
    entries: tuple[PackEntry, ...]

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Stream:
    """A reader that moves forward through a pack: where what was planned for it ends, where what it asked for ends, and how
    many bytes it has come."""

    position: int
    end: int
    used: int


ENTRIES_MAX = 4096
"""Chunks that one step of planning looks at; an index may claim millions of chunks of a byte each."""

REACH_MAX = 128
"""Chunks after a read of which it is looked whether they are here."""

STREAMS = 16
"""Readers that are told apart in one pack; the one that moved longest ago is forgotten."""


def coalesce(entries: Iterable[PackEntry], limits: Limits) -> list[Range]:
    """As few ranges as hold all `entries`, in the order of offsets.

    Neighbours at most `limits.gap` apart share a range unless it would exceed `limits.range_max`.
    """
    ranges: list[Range] = []
    start = end = 0
    members: list[PackEntry] = []
    for entry in sorted(entries, key=lambda entry: (entry.offset, entry.stored_length)):
        new_end = max(end, entry.offset + entry.stored_length)
        # What lies inside (others of a group) costs nothing, however long the range is.
        if members and new_end > end and (entry.offset - end > limits.gap or new_end - start > limits.range_max):
            ranges.append(Range(start, end - start, tuple(members)))
            members = []
        if not members:
            start, new_end = entry.offset, entry.offset + entry.stored_length
        members.append(entry)
        end = new_end
    if members:
        ranges.append(Range(start, end - start, tuple(members)))
    return ranges


def grouped(ranges: Iterable[Range], at_once: int, limits: Limits) -> list[tuple[Range, ...]]:
    """What to ask for in one request each: up to `at_once` ranges of `limits.range_max` bytes together, in their order."""
    groups: list[tuple[Range, ...]] = []
    size = 0
    for found in ranges:
        if groups and len(groups[-1]) < at_once and size + found.length <= limits.range_max:
            groups[-1] = (*groups[-1], found)
            size += found.length
        else:
            groups.append((found,))
            size = found.length
    return groups


def follow(streams: Sequence[Stream], start: int, end: int, limits: Limits) -> tuple[Stream, tuple[Stream, ...]]:
    """The stream that a read of the pack's bytes `start` to `end` belongs to, moved on, and all others.

    A read continues a stream if it begins where the stream's last one ended, or anywhere from there to the end of what was
    planned for it (it has then used what lies before, without anybody hearing of it: cache hits are not seen here), give or
    take `limits.gap`. The result's `position` is where read-ahead should now reach up to, never before `end`; it moves on
    when half of what was planned ahead is used up, so that read-ahead is asked for in few large requests.
    """
    for stream in streams:
        if stream.end - limits.gap <= start <= stream.position + limits.gap:
            used = stream.used + max(0, end - stream.end)
            window = limits.window(used)
            reached = max(end, stream.end)
            position = stream.position if reached + window // 2 < stream.position else reached + window
            others = tuple(other for other in streams if other is not stream)
            return Stream(max(position, stream.position), reached, used), others
    return Stream(end + limits.window(end - start), end, end - start), tuple(streams)[-(STREAMS - 1) :]


def ahead(candidates: Iterable[PackEntry], position: int, limits: Limits) -> list[PackEntry]:
    """Those first `candidates` (in the order of offsets) that end before `position` and decode to `raw_max` at most."""
    chosen: list[PackEntry] = []
    raw = 0
    for entry in islice(candidates, ENTRIES_MAX):
        raw += entry.raw_length
        if entry.offset + entry.stored_length > position or raw > limits.raw_max:
            break
        chosen.append(entry)
    return chosen


@dataclass(frozen=True, slots=True)
class Plan:
    """What to ask a pack for: `now`, because somebody waits for it, and `beside`, because it may be read next.

    `streams` replaces the pack's streams.
    """

    now: tuple[Range, ...]
    beside: tuple[Range, ...]
    streams: tuple[Stream, ...]


def plan(
    wanted: Sequence[PackEntry],
    new: Sequence[PackEntry],
    streams: Sequence[Stream],
    between: Callable[[int, int], Iterable[PackEntry]],
    here: Callable[[PackEntry], bool],
    slots: int,
    limits: Limits,
) -> Plan:
    """The requests for a read of the chunks `wanted`, of which `new` are neither local nor on their way.

    `between` lists the pack's chunks that begin in a range of bytes, in order; `here` says of a chunk whether it is local
    or on its way, and so need not be fetched. At most `slots` requests are planned beside.
    """
    now = list(new)
    beside: list[Range] = []
    for run in coalesce(wanted, limits):
        stream, others = follow(streams, run.offset, run.end, limits)
        stream = replace(stream, position=_reach(stream.position, between, here, limits))
        extra = [entry for entry in ahead(between(run.end, stream.position), stream.position, limits) if not here(entry)]
        extra = [entry for entry in extra if entry not in now]
        fresh = any(entry in new for entry in run.entries)
        near = run.end + limits.beside_max if fresh else run.end
        now += [entry for entry in extra if entry.offset < near]
        later = coalesce((entry for entry in extra if entry.offset >= near), limits)
        room = max(0, slots - len(beside))
        if len(later) > room:
            stream = replace(stream, position=max(stream.end, later[room].offset))
        beside += later[:room]
        streams = (*others, stream)
    return Plan(
        tuple(_filled(found, between, here) for found in coalesce(now, limits)),
        tuple(_filled(found, between, here) for found in beside),
        tuple(streams),
    )


def _reach(
    position: int, between: Callable[[int, int], Iterable[PackEntry]], here: Callable[[PackEntry], bool], limits: Limits
) -> int:
    """How far everything is here or on its way from `position` on: a reader comes through that without being heard of."""
    for entry in islice(between(position, position + limits.window_max), REACH_MAX):
        if entry.offset > position + limits.gap or not here(entry):
            break
        position = max(position, entry.offset + entry.stored_length)
    return position


def _filled(found: Range, between: Callable[[int, int], Iterable[PackEntry]], here: Callable[[PackEntry], bool]) -> Range:
    """`found` with the chunks in its holes: their bytes come anyway."""
    members = set(found.entries)
    if sum(entry.stored_length for entry in found.entries) == found.length:
        return found
    candidates = islice(between(found.offset, found.end), ENTRIES_MAX)
    inside = (entry for entry in candidates if entry.offset + entry.stored_length <= found.end)
    members.update(entry for entry in inside if entry not in members and not here(entry))
    return Range(found.offset, found.length, tuple(sorted(members, key=lambda entry: (entry.offset, entry.digest))))


def exactly(wanted: Sequence[PackEntry], limits: Limits) -> Plan:
    """The requests for `wanted` and nothing besides, where there is no cache that could keep more."""
    return Plan(tuple(coalesce(wanted, limits)), (), ())
