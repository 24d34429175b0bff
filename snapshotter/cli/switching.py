"""Building, and how long a thread keeps the interpreter."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

_INTERVAL = 0.0005
"""Seconds; the interpreter's own are 5 ms."""


@contextlib.contextmanager
def threads_switched_often() -> Iterator[None]:
    """Let threads that read, hash and write packs have the interpreter back soon, while another one makes the metadata.

    They need it for microseconds between calls that do without, and would wait for it longer than those calls take.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(_INTERVAL)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
