"""Building and the cyclic garbage collector."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Without the cyclic collector while the block runs, for commands that build trees and then end.

    A tree has hundreds of thousands of objects and no cycle; the collector goes through all of them whenever a quarter more
    have been made, which took a tenth of a build's time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
