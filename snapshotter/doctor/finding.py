"""One line of a diagnosis."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import asdict, dataclass


class Level(enum.StrEnum):
    """How bad it is. WARN: it works, less well than it could. FAIL: something that people expect does not work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    `check` is a stable name for programs (``kernel.fuse``), `text` says what is so, `advice` what to type or change, empty
    where there is nothing to do.
    """

    check: str
    level: Level
    text: str
    advice: str = ""

    def to_json(self) -> dict[str, str]:
        """As JSON values."""
        return {key: str(value) for key, value in asdict(self).items()}


def ok(check: str, text: str, advice: str = "") -> Finding:
    """Nothing is wrong."""
    return Finding(check, Level.OK, text, advice)


def warn(check: str, text: str, advice: str) -> Finding:
    """It works, less well than it could."""
    return Finding(check, Level.WARN, text, advice)


def fail(check: str, text: str, advice: str) -> Finding:
    """Something does not work."""
    return Finding(check, Level.FAIL, text, advice)


def worst(findings: Iterable[Finding]) -> Level:
    """The worst level among `findings`."""
    order = list(Level)
    return max((finding.level for finding in findings), key=order.index, default=Level.OK)
