"""The snapshotter's own state: whether rows, directories, layers, mounts and cache agree."""

from __future__ import annotations

from pathlib import Path

from snapshotter.daemon.invariants import Report
from snapshotter.doctor.finding import Finding, fail, ok

LISTED = 10
"""Most lines about what is broken; the rest is counted."""


def check_root(root: Path, report: Report) -> list[Finding]:
    """`report` is what `invariants.settled` says of `root`."""
    advice = "remove the images that need it and pull them again; if nothing names one, systemctl restart puzzlefs-snapshotter"
    found = [fail("root.agrees", line, advice) for line in report.broken[:LISTED]]
    if len(report.broken) > LISTED:
        found.append(fail("root.agrees", f"{len(report.broken) - LISTED} more such things in {root}", advice))
    if not found:
        found.append(ok("root.agrees", f"rows, directories, layers, mounts and cache of {root} agree"))
    if report.garbage:
        text = f"{len(report.garbage)} things in {root} wait for the next clean-up, such as: {report.garbage[0]}"
        found.append(ok("root.garbage", text, "containerd has it cleaned up with its own garbage"))
    return found
