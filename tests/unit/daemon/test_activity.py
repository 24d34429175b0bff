"""Sums over workers that come and go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from snapshotter.chunkstore.reads import Reads
from snapshotter.chunkstore.stats import Count, Stats
from snapshotter.daemon.activity import Activity
from snapshotter.daemon.supervisor import WorkerState
from snapshotter.format.digest import sha256


def report(hits: int, *, waiting: bool = False) -> Mapping[str, Any]:
    stats, reads = Stats(), Reads()
    stats.add(Count.HITS, hits)
    number = reads.begin("fetch", "layer", sha256(b""))
    if not waiting:
        reads.end("fetch", number, failed=False)
    counts = {what.value: by_source for what, by_source in stats.snapshot().items() if by_source}
    return {"counts": counts, "reads": reads.report()}


def worker(pid: int, said: Mapping[str, Any] | None) -> WorkerState:
    return WorkerState(0, pid, ("/l/1",), 0, 1.0, said)


def test_what_a_worker_counted_stays_counted_when_it_is_gone() -> None:
    workers = [worker(1, report(5, waiting=True))]
    activity = Activity(lambda: workers, lambda: report(0))
    _, totals = activity.take()
    assert totals.count(Count.HITS) == 5
    assert totals.in_flight["fetch"] == 1
    workers[:] = [worker(2, report(1))]
    _, totals = activity.take()
    assert totals.count(Count.HITS) == 6
    assert totals.in_flight["fetch"] == 0, "what a dead worker had under way is under way no more"
    assert sum(totals.latency["fetch"]) == 2, "one of the second worker, one of the daemon itself"


def test_a_worker_that_does_not_answer_is_taken_at_its_last_word() -> None:
    workers = [worker(1, report(5))]
    activity = Activity(lambda: workers, dict)
    activity.take()
    workers[:] = [worker(1, None)]
    states, totals = activity.take()
    assert states[0].report is None
    assert totals.count(Count.HITS) == 5
