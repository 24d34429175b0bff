"""Times contestants side by side: each in every round, so that whatever the machine does meanwhile hits all of them.

A figure from one run on one machine says little; the ratio of two things that took turns in that run says much.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


def nothing() -> None:
    """Prepares nothing."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to do the job. `prepare` comes before every `run` and is not timed: it makes things cold, or warm.

    `run` may return the seconds that count, where it does more than what is measured; else it is timed as a whole.
    """

    name: str
    run: Callable[[], float | None]
    prepare: Callable[[], None] = nothing


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one contestant, one for each round."""

    seconds: Sequence[float]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)

    def ratio(self, reference: Timing) -> float:
        """How many times as long as `reference`: the median over the rounds, in each of which both took their turn."""
        pairs = zip(self.seconds, reference.seconds, strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)


def side_by_side(contestants: Sequence[Contestant], rounds: int) -> Mapping[str, Timing]:
    """Every contestant once in each of `rounds` rounds, by name. Who begins changes from round to round."""
    seconds: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for number in range(rounds):
        first = number % len(contestants)
        for contestant in [*contestants[first:], *contestants[:first]]:
            contestant.prepare()
            start = time.monotonic()
            own = contestant.run()
            seconds[contestant.name].append(time.monotonic() - start if own is None else own)
    return {name: Timing(each) for name, each in seconds.items()}


def drop_caches() -> None:
    """Let the kernel forget clean pages, names and inodes of all file systems (Documentation/admin-guide/sysctl/vm.rst).

    Raises:
        OSError: this is not root.
    """
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
