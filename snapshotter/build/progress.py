"""How long work says what it is doing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Progress:
    """`stage` is what is done to `what` (a blob's name), of which `done` of `total` bytes are done; a ``note`` is a remark."""

    stage: Literal["read", "push", "note"]
    what: str
    done: int = 0
    total: int = 0


Report = Callable[[Progress], None]
"""Told of progress; may be called from several threads, one after another or at once."""


def silent(progress: Progress) -> None:
    """A `Report` that drops what it is told."""
