"""What people see: a progress display on a terminal, plain lines elsewhere, sizes in the units of storage."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


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


class Bars:
    """Bars that move, on a terminal; steps scroll by above them."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def step(self, text: str) -> None:
        """See `Reporter`."""
        self._progress.console.print(text, highlight=False, markup=False)

    def advance(self, task: str, done: int, total: int | None) -> None:
        """See `Reporter`."""
        if task not in self._tasks:
            self._tasks[task] = self._progress.add_task(task, total=total)
        self._progress.update(self._tasks[task], completed=done, total=total)
        if total is not None and done >= total:
            self._progress.remove_task(self._tasks.pop(task))


def reporter() -> Reporter:
    """The one that suits where stderr goes."""
    return Bars() if sys.stderr.isatty() else Lines()
