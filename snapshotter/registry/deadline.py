"""How long may this still take: a bound that goes down the call chain with the thread that asks.

Whoever must be done at some time says so once (`within`), and whatever waits for a network below asks how much is left, so
that no sum of time-outs exceeds the whole. Tasks for other threads take it along with ``contextvars.copy_context``.
"""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Iterator

_until: contextvars.ContextVar[float] = contextvars.ContextVar("until", default=float("inf"))


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """All requests inside the block together have at most `seconds`, or less if an outer block says so."""
    token = _until.set(min(_until.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        _until.reset(token)


def remaining() -> float:
    """Seconds that are left; infinite where nobody set a bound, negative when it has passed."""
    return _until.get() - time.monotonic()
