"""Forces an order on threads: what a race may do once in a million runs, a test does every time (as trio's ``Sequencer``)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Sequencer:
    """Numbered steps, each of which begins when the one before it has ended, in whatever threads they are."""

    def __init__(self, patience: float = 30.0) -> None:
        self._next = 0
        self._changed = threading.Condition()
        self._patience = patience

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Wait for the turn of step `number`; the next one's comes when the block ends, even by an exception."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._next == number, self._patience), (
                f"step {number} waits for step {self._next}, which nobody takes"
            )
        try:
            yield
        finally:
            with self._changed:
                self._next += 1
                self._changed.notify_all()

    def reach(self, number: int) -> None:
        """Take step `number` and do nothing in it."""
        with self.step(number):
            pass
