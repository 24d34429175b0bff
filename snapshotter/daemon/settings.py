"""What the values of a configuration file must be, each checked by a function that names the key in its complaint."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from snapshotter.errors import InvalidError

_SIZE = re.compile(r"([0-9]{1,6})\s*(|[KMGT]i?B)\Z")
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

Reader = Callable[[str, Any], Any]
"""Takes a key, for messages, and its value; gives what it means, or raises InvalidError."""


def check_keys(where: str, table: Mapping[str, Any], readers: Mapping[str, Reader]) -> dict[str, Any]:
    """The values of `table`, each as its reader gives it. Unknown keys are errors.

    Raises:
        InvalidError: a key is unknown, or its value not of the kind that it must be.
    """
    read: dict[str, Any] = {}
    for key, value in table.items():
        if key not in readers:
            raise InvalidError(f"unknown key {where}.{key}; known are {', '.join(sorted(readers))}")
        read[key] = readers[key](f"{where}.{key}", value)
    return read


def table_of(key: str, value: Any) -> dict[str, Any]:
    """A table."""
    if not isinstance(value, dict):
        raise InvalidError(f"{key} must be a table")
    return value


def text(key: str, value: Any) -> str:
    """A string with something in it."""
    if not isinstance(value, str) or not value:
        raise InvalidError(f"{key} must be a string that is not empty")
    return value


def texts(key: str, value: Any) -> tuple[str, ...]:
    """A list of such strings."""
    if not isinstance(value, list):
        raise InvalidError(f"{key} must be a list of strings")
    return tuple(text(key, each) for each in value)


def flag(key: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise InvalidError(f"{key} must be true or false")
    return value


def absolute(key: str, value: Any) -> Path:
    """An absolute path."""
    path = Path(text(key, value))
    if not path.is_absolute():
        raise InvalidError(f"{key} must be an absolute path, not {value!r}")
    return path


def seconds(key: str, value: Any) -> float:
    """A number of seconds, up to an hour."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 3600:
        raise InvalidError(f"{key} must be a number of seconds above 0 and up to 3600, not {value!r}")
    return float(value)


def whole(key: str, value: Any, least: int, most: int) -> int:
    """A whole number in a range."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidError(f"{key} must be a number from {least} to {most}, not {value!r}")
    return value


def size(key: str, value: Any) -> int | None:
    """Bytes from a size such as ``20GiB``; None for 0, which is no limit."""
    match = _SIZE.match(str(value))
    if isinstance(value, bool) or match is None:
        raise InvalidError(f'{key} must be a size such as "20GiB" (0: no limit), not {value!r}')
    return int(match[1]) * _UNITS[match[2]] or None


def rate(key: str, value: Any) -> int:
    """Bytes a second, as a size that is not 0: that would be nothing, and what it bounds has a switch of its own."""
    found = size(key, value)
    if found is None:
        raise InvalidError(f"{key} must be more than 0 bytes a second; to have nothing sent or fetched, turn that off instead")
    return found
