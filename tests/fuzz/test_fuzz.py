"""The readers of foreign bytes hold: over everything that earlier hunts found, and over a short new one each.

A longer one by hand: ``make fuzz SECONDS=600``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuzz import targets
from tests.support.tools import ROOT

CORPUS = Path(__file__).parent / "corpus"
SECONDS = int(os.environ.get("FUZZ_SECONDS", "6"))
INPUTS = sorted(path.relative_to(CORPUS).as_posix() for path in CORPUS.glob("*/*"))


def test_every_target_has_a_corpus() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(targets.TARGETS)


@pytest.mark.parametrize("name", INPUTS)
def test_what_was_found_before_is_answered_at_once(name: str) -> None:
    start = time.process_time()
    targets.run(name.partition("/")[0], (CORPUS / name).read_bytes())
    assert time.process_time() - start < 5


@pytest.mark.root  # one after the other with the rest that takes the machine for itself
@pytest.mark.parametrize("target", sorted(targets.TARGETS))
def test_a_short_hunt_finds_nothing(target: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.run", target, str(SECONDS), str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS * 5 + 120,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    tried = re.search(r"number_of_executed_units: *([0-9]+)", done.stderr)
    assert tried is not None, done.stderr[-2000:]
    assert int(tried[1]) > 2 * len(list((CORPUS / target).iterdir()))
