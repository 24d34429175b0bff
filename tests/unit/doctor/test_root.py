"""What the doctor says of the snapshotter's own state."""

from __future__ import annotations

from pathlib import Path

from snapshotter.daemon.invariants import Report
from snapshotter.doctor.finding import Level
from snapshotter.doctor.root import LISTED, check_root

ROOT = Path("/var/lib/puzzlefs")


def test_nothing_is_wrong() -> None:
    (finding,) = check_root(ROOT, Report((), ()))
    assert finding.level is Level.OK
    assert str(ROOT) in finding.text


def test_what_waits_for_a_clean_up_is_no_fault() -> None:
    agrees, garbage = check_root(ROOT, Report((), ("directory s/7 belongs to no snapshot",)))
    assert (agrees.level, garbage.level) == (Level.OK, Level.OK)
    assert "s/7" in garbage.text


def test_what_is_broken_is_listed_and_bounded() -> None:
    findings = check_root(ROOT, Report(tuple(f"layer {number} is used and not mounted" for number in range(LISTED + 5)), ()))
    assert [finding.level for finding in findings] == [Level.FAIL] * (LISTED + 1)
    assert "layer 0" in findings[0].text
    assert findings[-1].text.startswith("5 more")
    assert all(finding.advice for finding in findings)
