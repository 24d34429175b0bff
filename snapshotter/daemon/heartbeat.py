"""Which workers do not answer: asked all at once, and twice in a row before one is taken for hung."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar


class Asked(Protocol):
    """A worker's process (`mount.workerclient.WorkerClient`)."""

    @property
    def pid(self) -> int:
        """Its number."""
        ...

    def begin_ping(self) -> Callable[[float], bool]:
        """Ask it; whether it has answered within so many seconds from the call of what this returns."""
        ...


_Worker = TypeVar("_Worker", bound=Asked)


class Heartbeat:
    """Remembers who was silent in the last round."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._silent: frozenset[int] = frozenset()

    def silent(self, workers: Mapping[int, _Worker], timeout: float) -> Mapping[int, _Worker]:
        """Those of `workers` that have not answered within `timeout` seconds, neither now nor when they were asked last."""
        asked = [(number, worker, worker.begin_ping()) for number, worker in workers.items()]
        deadline = self._clock() + timeout
        now = {number: worker for number, worker, answers in asked if not answers(deadline - self._clock())}
        before, self._silent = self._silent, frozenset(worker.pid for worker in now.values())
        return {number: worker for number, worker in now.items() if worker.pid in before}
