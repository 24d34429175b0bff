"""What a command and the processes that it starts cost: time, processor time, and memory that is looked at while they run."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import tools

INTERVAL = 0.1
"""Seconds between looks at the memory."""

_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)
_SHARE = re.compile(r"^Pss:\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Observed:
    """Seconds by the clock and of all processors; bytes of the largest process, and of all of them together.

    The largest is the largest resident set; together, what several processes share counts once (proportional set sizes).
    """

    wall: float
    processor: float
    largest: int
    together: int


def observed(*command: str | Path) -> Observed:
    """Run `command` to its end.

    Raises:
        SystemExit: it fails.
    """
    words = list(map(str, command))
    start = time.monotonic()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=tools.environment())
    watch = _Watch(process.pid)
    with watch:
        said = process.stderr.read() if process.stderr is not None else b""
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(words)}: exit status {process.returncode}: {said[-1000:].decode(errors='replace')}")
    return Observed(wall, usage.ru_utime + usage.ru_stime, watch.largest, watch.together)


class _Watch:
    """Looks at a process and all below it, again and again, while the block runs."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.largest = 0
        self.together = 0

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(INTERVAL):
            together = 0
            for pid in _tree(self._pid):
                self.largest = max(self.largest, _kilobytes(pid, "status", _PEAK) * 1024)
                together += _kilobytes(pid, "smaps_rollup", _SHARE) * 1024
            self.together = max(self.together, together)


def _tree(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                yield from _tree(int(child))


def _kilobytes(pid: int, name: str, what: re.Pattern[str]) -> int:
    try:
        found = what.search(Path(f"/proc/{pid}/{name}").read_text())
    except OSError:  # it has ended
        return 0
    return int(found[1]) if found else 0
