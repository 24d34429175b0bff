"""A log line is one line, whatever is in it."""

from __future__ import annotations

import logging

from hypothesis import given
from hypothesis import strategies as st

from snapshotter.daemon.logs import OneLine


def _line(message: str, *arguments: object, error: BaseException | None = None) -> str:
    info = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("snapshotter.x", logging.WARNING, "x.py", 1, message, arguments, info)
    return OneLine("%(levelname)s %(name)s: %(message)s").format(record)


@given(st.text())
def test_one_line(text: str) -> None:
    assert _line("%s", text).isprintable()


def test_what_is_printable_stays() -> None:
    assert _line("layer %s of %s", "ä", "registry.example/app:1") == "WARNING snapshotter.x: layer ä of registry.example/app:1"


def test_no_line_of_a_traceback_is_a_message() -> None:
    try:
        raise ValueError("bad\nERROR snapshotter.daemon: forged\x1b[2J")
    except ValueError as error:
        lines = _line("failed", error=error).splitlines()
    assert lines[0] == "WARNING snapshotter.x: failed"
    assert all(line.startswith("    ") and line.isprintable() for line in lines[1:])
    assert any("forged" in line for line in lines)
