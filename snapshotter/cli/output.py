"""What people see: a progress display on a terminal, plain lines elsewhere, sizes in the units of storage."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Protocol


def size(count: int) -> str:
    """`count` bytes for a person: ``512 B``, ``1.2 kB``, ``34.5 MB`` (powers of ten, as registries count)."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


class Reporter(Protocol):
    """Shows how far something has come. Used as a context manager."""

    def __enter__(self) -> Reporter: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def step(self, text: str) -> None:
        """Something is done; `text` says what."""

    def advance(self, task: str, done: int, total: int | None) -> None:
        """`done` of `total` bytes of `task`; the total may be unknown."""


class Lines:
    """One line a step and nothing else: for logs and pipes."""

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def step(self, text: str) -> None:
        """See `Reporter`."""
        print(text, file=sys.stderr, flush=True)

    def advance(self, task: str, done: int, total: int | None) -> None:
        """See `Reporter`: steps are enough where nobody watches."""


def reporter() -> Reporter:
    """The one that suits where stderr goes."""
    if not sys.stderr.isatty():
        return Lines()
    from snapshotter.cli.bars import Bars  # imported where somebody watches: it takes 40 ms

    return Bars()
