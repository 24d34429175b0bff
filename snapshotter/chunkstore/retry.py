"""Asking again, but not for ever and not all at once.

An unavailable source is asked again if it says itself that this is worth it, after a pause that doubles and of which a
random part is slept ("full jitter": many nodes whose registry comes back do not all ask in the same moment). A source that
names a time to wait (HTTP's Retry-After) is believed up to a cap. A corrupt answer is read again once, at once: a proxy or a
cable garbles one transfer, a damaged store stays damaged.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from snapshotter.chunkstore.base import ChunkRef, ChunkStore
from snapshotter.chunkstore.stats import Count, Stats
from snapshotter.errors import CorruptError, UnavailableError
from snapshotter.format.digest import Digest
from snapshotter.registry import deadline

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long; times in seconds.

    `deadline` bounds the whole: no pause begins that would end after it, and no request goes on after it. It must lie below
    the read's own bound.
    """

    attempts: int = 6
    first_pause: float = 0.1
    longest_pause: float = 5.0
    longest_retry_after: float = 20.0
    deadline: float = 50.0

    def pause(self, attempt: int, retry_after: float | None, jitter: float) -> float:
        """Seconds to sleep after the `attempt`-th failure (1 is the first); `jitter` is random in [0, 1)."""
        backoff = jitter * min(self.longest_pause, self.first_pause * 2.0 ** min(attempt - 1, 30))
        if retry_after is None:
            return backoff
        return min(max(0.0, retry_after), self.longest_retry_after) + backoff


@dataclass(frozen=True, slots=True)
class Patience:
    """Makes attempts as `policy` says. `clock`, `sleep` and `jitter` are the system's."""

    policy: RetryPolicy = field(default_factory=RetryPolicy)
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random

    def run(self, attempt: Callable[[], T], again: Callable[[], None] = lambda: None) -> T:
        """What `attempt` answers at last; `again` is called before each repetition.

        Requests of an attempt have what is left of the policy's deadline.

        Raises:
            What the last attempt raised.
        """
        policy = self.policy
        until = self.clock() + policy.deadline
        unavailable = 0
        reread = False
        while True:
            try:
                with deadline.within(until - self.clock()):
                    return attempt()
            except CorruptError:
                if reread or self.clock() >= until:
                    raise
                reread = True
            except UnavailableError as error:
                unavailable += 1
                if not getattr(error, "retryable", True) or unavailable >= policy.attempts:
                    raise
                pause = policy.pause(unavailable, getattr(error, "retry_after", None), self.jitter())
                if self.clock() + pause >= until:
                    raise
                self.sleep(pause)
            again()


class Retry:
    """Asks `inner` again as `policy` says."""

    def __init__(
        self,
        inner: ChunkStore,
        *,
        stats: Stats,
        policy: RetryPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._inner = inner
        self._stats = stats
        self._patience = Patience(policy or RetryPolicy(), clock, sleep, jitter)

    @property
    def name(self) -> str:
        return f"retry({self._patience.policy.attempts}) → {self._inner.name}"

    def get(self, wanted: Sequence[ChunkRef]) -> list[bytes]:
        return self._patience.run(lambda: self._inner.get(wanted), lambda: self._stats.add(Count.RETRIES))

    def has(self, digest: Digest) -> bool:
        return self._inner.has(digest)

    def close(self) -> None:
        self._inner.close()
