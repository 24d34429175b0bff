"""Readers of `load` beside what a test does, and what they found."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Readings:
    """What the readers found, once they have ended."""

    results: list[dict[str, Any]] = field(default_factory=list)

    @property
    def wrong(self) -> list[str]:
        """Everything that was not as it should be."""
        return [text for result in self.results for text in result["wrong"]]

    @property
    def slowest(self) -> float:
        """The longest that one call took, in seconds."""
        return max(float(result["slowest"]) for result in self.results)

    @property
    def fewest(self) -> int:
        """Files that the least busy reader read."""
        return min(int(result["reads"]) for result in self.results)


@contextlib.contextmanager
def reading(directory: Path, readers: int = 4) -> Iterator[Readings]:
    """Readers below `directory` meanwhile; what they found is there afterwards."""
    command = [sys.executable, "-m", "tests.support.load", str(directory)]
    processes = [
        subprocess.Popen([*command, str(seed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for seed in range(readers)
    ]
    readings = Readings()
    try:
        yield readings
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in processes:
            assert process.stdout is not None
            process.wait(60)
            readings.results.append(json.loads(process.stdout.read()))
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            # One whose request was taken and is never answered cannot be killed before the connection is closed.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
