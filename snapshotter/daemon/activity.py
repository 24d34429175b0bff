"""What all processes of the daemon have done together: counters that outlive the workers that counted them.

A worker's counters end with it. So the last report of each is kept, and that of a worker that is gone is added to what was
before: sums never go down, as whoever reads counters expects. Reports are also taken between the readers' questions
(`INTERVAL`), which bounds what a dying worker takes along.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from snapshotter.chunkstore.reads import BUCKETS, KINDS
from snapshotter.chunkstore.stats import Count
from snapshotter.daemon.supervisor import WorkerState

_NAMES = frozenset(what.value for what in Count)

INTERVAL = 15.0
"""Seconds between reports that are taken unasked."""


class Totals:
    """Sums of reports (`chunkstore.chain.Node.report`), by counter and source, and of the latencies by kind."""

    def __init__(self) -> None:
        self.counts: dict[Count, dict[str, int]] = {}
        self.latency: dict[str, list[int]] = {kind: [0] * (len(BUCKETS) + 1) for kind in KINDS}
        self.seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
        self.failed: dict[str, int] = dict.fromkeys(KINDS, 0)
        self.in_flight: dict[str, int] = dict.fromkeys(KINDS, 0)
        self.hung: dict[str, int] = dict.fromkeys(KINDS, 0)

    def add(self, report: Mapping[str, Any], *, alive: bool) -> None:
        """Add a report; what is under way counts only while its process is `alive`."""
        for name, by_source in report.get("counts", {}).items():
            if name in _NAMES:
                counted = self.counts.setdefault(Count(name), {})
                for source, amount in by_source.items():
                    counted[source] = counted.get(source, 0) + int(amount)
        for kind in KINDS:
            reads = report.get("reads", {}).get(kind)
            if reads is None:
                continue
            self.latency[kind] = [have + int(more) for have, more in zip(self.latency[kind], reads["counts"], strict=True)]
            self.seconds[kind] += reads["seconds"]
            self.failed[kind] += reads["failed"]
            if alive:
                self.in_flight[kind] += reads["in_flight"]
                self.hung[kind] += reads["hung"]

    def count(self, what: Count) -> int:
        """`what` over all sources."""
        return sum(self.counts.get(what, {}).values())


class Activity:
    """Asks for reports and sums them up. `workers` lists the workers, `own` is the daemon's own report."""

    def __init__(self, workers: Callable[[], Sequence[WorkerState]], own: Callable[[], Mapping[str, Any]]) -> None:
        self._workers = workers
        self._own = own
        self._last: dict[int, Mapping[str, Any]] = {}
        self._gone = Totals()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="activity", daemon=True)

    def start(self) -> None:
        """Take reports in the background from now on."""
        self._thread.start()

    def take(self) -> tuple[Sequence[WorkerState], Totals]:
        """The workers as they are now, and the sums over all that there ever were."""
        with self._lock:
            states = self._workers()
            for pid in self._last.keys() - {state.pid for state in states}:
                self._gone.add(self._last.pop(pid), alive=False)
            self._last |= {state.pid: state.report for state in states if state.report is not None}
            totals = Totals()
            totals.add(_as_report(self._gone), alive=False)
            totals.add(self._own(), alive=True)
            for report in self._last.values():
                totals.add(report, alive=True)
            return states, totals

    def close(self) -> None:
        """End the background. Calling it again does nothing."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(INTERVAL):
            self.take()


def _as_report(totals: Totals) -> dict[str, Any]:
    reads = {
        kind: {
            "in_flight": 0,
            "hung": 0,
            "failed": totals.failed[kind],
            "seconds": totals.seconds[kind],
            "counts": totals.latency[kind],
        }
        for kind in KINDS
    }
    return {"counts": {what.value: counted for what, counted in totals.counts.items()}, "reads": reads}
