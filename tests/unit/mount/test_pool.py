from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from snapshotter.mount.pool import LENT_MAX, Pool

PATIENCE = 20


@pytest.fixture
def pool() -> Iterator[Pool]:
    with closing(Pool("test", 2)) as made:
        yield made


class Held:
    """A job that waits until it is let go."""

    def __init__(self, at_end: Callable[[], None] = lambda: None) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self.done = threading.Event()
        self._at_end = at_end

    def __call__(self) -> None:
        self.begun.set()
        assert self.go.wait(PATIENCE)
        self._at_end()
        self.done.set()


def threads() -> int:
    return sum(thread.name.startswith("test-") for thread in threading.enumerate())


def test_jobs_run_at_once_up_to_its_size_and_then_wait(pool: Pool) -> None:
    held = [Held() for _ in range(3)]
    for job in held:
        pool.submit(job)
    assert all(job.begun.wait(PATIENCE) for job in held[:2])
    assert not held[2].begun.is_set()
    held[0].go.set()
    assert held[2].begun.wait(PATIENCE)
    for job in held:
        job.go.set()
    assert all(job.done.wait(PATIENCE) for job in held)
    assert threads() == 2


def test_threads_are_started_when_they_are_needed(pool: Pool) -> None:
    assert threads() == 0
    for _ in range(3):
        job = Held()
        job.go.set()
        pool.submit(job)
        assert job.done.wait(PATIENCE)
    assert threads() <= 2


def test_an_abandoned_job_gives_its_place_to_another(pool: Pool) -> None:
    stuck = [Held(pool.give_back) for _ in range(2)]
    for job in stuck:
        pool.submit(job)
        assert job.begun.wait(PATIENCE)
    waiting = Held()
    pool.submit(waiting)
    assert pool.lend()
    assert waiting.begun.wait(PATIENCE)
    assert pool.lend()
    for job in (waiting, *stuck):
        job.go.set()
    assert all(job.done.wait(PATIENCE) for job in (waiting, *stuck))
    for job in (after := [Held() for _ in range(3)]):
        pool.submit(job)
    assert all(job.begun.wait(PATIENCE) for job in after[:2])
    assert not after[2].begun.wait(0.1), "the pool has its old size again"
    for job in after:
        job.go.set()


def test_not_all_threads_can_be_lent() -> None:
    with closing(Pool("test", 1)) as pool:
        assert all(pool.lend() for _ in range(LENT_MAX))
        assert not pool.lend()


def test_a_job_that_fails_takes_no_thread_along(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(5):
        pool.submit(lambda: 1 / 0)
    job = Held()
    job.go.set()
    pool.submit(job)
    assert job.done.wait(PATIENCE)
    assert "ZeroDivisionError" in caplog.text


def test_closing_waits_for_what_was_submitted() -> None:
    done = []
    pool = Pool("test", 1)
    for number in range(10):
        pool.submit(lambda number=number: done.append(number))  # type: ignore[misc]
    pool.close()
    assert done == list(range(10))
    assert threads() == 0
