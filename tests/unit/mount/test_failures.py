"""Reports of failures: with a path, and not too many."""

from __future__ import annotations

from snapshotter.errors import CorruptError
from snapshotter.format.model import DirEntry, Inode, Kind, RootfsContent
from snapshotter.format.rootfs import Rootfs
from snapshotter.format.writer import encode
from snapshotter.mount.failures import REPORTS_PER_SECOND, FailureReport, FailureReporter
from snapshotter.mount.session import Failure
from snapshotter.mount.tree import Tree

INODES = [Inode(1, Kind.DIR, entries=[DirEntry(2, b"caf\xe9")]), Inode(2, Kind.FILE)]


def test_a_report_names_what_failed() -> None:
    reports: list[FailureReport] = []
    reporter = FailureReporter(reports.append)
    reporter.report("layer", Tree(Rootfs.open(encode(RootfsContent([INODES])))), Failure(2, 3, 4, CorruptError("bad chunk")))
    reporter.close()
    assert reports == [FailureReport("layer", "/caf\\xe9", 2, 3, 4, "bad chunk", "CorruptError", 0)]


def test_a_flood_is_counted_instead() -> None:
    now = 0.0
    reports: list[FailureReport] = []
    reporter = FailureReporter(reports.append, lambda: now)
    tree = Tree(Rootfs.open(encode(RootfsContent([INODES]))))
    for _ in range(REPORTS_PER_SECOND + 7):
        reporter.report("a", tree, Failure(2, 0, 1, CorruptError("x")))
    reporter.report("b", tree, Failure(2, 0, 1, CorruptError("x")))
    now = 1.5
    reporter.report("a", tree, Failure(2, 0, 1, CorruptError("x")))
    reporter.close()
    assert [report.mount for report in reports] == ["a"] * REPORTS_PER_SECOND + ["b", "a"]
    assert reports[-1].suppressed == 7


def test_a_report_is_one_line_whatever_a_file_is_called() -> None:
    report = FailureReport(
        "layer x of app:1", "/etc/a\nERROR forged\x1b[2J", 5, 10, 20, "chunk y of host z", "ChunkMissingError", 3
    )
    assert str(report) == (
        "read failed: layer x of app:1, file /etc/a\\nERROR forged\\x1b[2J, bytes 10+20: chunk y of host z (3 more like it)"
    )
