"""Who is taken for hung."""

from __future__ import annotations

from collections.abc import Callable

from snapshotter.daemon.heartbeat import Heartbeat


class Worker:
    """Answers after `takes` seconds of the test's clock."""

    def __init__(self, pid: int, now: list[float]) -> None:
        self.pid = pid
        self.takes = 0.0
        self._now = now

    def begin_ping(self) -> Callable[[float], bool]:
        began = self._now[0]

        def answers(timeout: float) -> bool:
            waits = max(0.0, began + self.takes - self._now[0])
            self._now[0] += min(waits, max(0.0, timeout))
            return waits <= timeout

        return answers


def test_silent_twice_in_a_row() -> None:
    now = [0.0]
    heartbeat = Heartbeat(lambda: now[0])
    workers = {0: Worker(10, now), 1: Worker(11, now)}
    workers[1].takes = 60.0
    assert heartbeat.silent(workers, 5.0) == {}
    assert heartbeat.silent(workers, 5.0) == {1: workers[1]}
    workers[1].takes = 0.0
    assert heartbeat.silent(workers, 5.0) == {}
    workers[1].takes = 60.0
    assert heartbeat.silent(workers, 5.0) == {}, "it has answered in between"


def test_a_successor_is_another() -> None:
    now = [0.0]
    heartbeat = Heartbeat(lambda: now[0])
    first, second = Worker(10, now), Worker(20, now)
    first.takes = second.takes = 60.0
    assert heartbeat.silent({0: first}, 5.0) == {}
    assert heartbeat.silent({0: second}, 5.0) == {}


def test_many_that_hang_take_one_turn_s_time() -> None:
    """The service manager hears from the daemon meanwhile."""
    now = [0.0]
    workers = {number: Worker(number, now) for number in range(32)}
    for worker in workers.values():
        worker.takes = 60.0
    Heartbeat(lambda: now[0]).silent(workers, 5.0)
    assert now[0] == 5.0
