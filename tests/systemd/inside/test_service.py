"""``systemctl restart``, ``kill -9``, upgrade and downgrade of the shipped unit, under readers that check every byte."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from snapshotter import __version__
from snapshotter.mount import mounting
from snapshotter.snapshots import tables
from tests.support.processes import CommandError, run
from tests.support.readers import Readings, reading
from tests.system.conftest import Node, Published, Server
from tests.systemd.inside.unit import NAME, OLD_VERSION, Unit

pytestmark = pytest.mark.root

LAYERS = 3


@pytest.fixture
def readings(node: Node, server: Server, loaded: Published, unit: Unit) -> Iterator[Readings]:
    """The root of a container, whose files are read meanwhile, with never a wrong byte or an error."""
    node.pull_lazily(loaded.lazy)
    with node.containerd.snapshot(server.chain_id(loaded.lazy), node.directory / "root", "puzzlefs") as root:
        with reading(root / "load") as readings:
            yield readings
            time.sleep(1)
            node.wait_for_containerd()
        assert readings.wrong == [], unit.journal()
        assert readings.fewest > 0


def connections(unit: Unit) -> set[str]:
    """The device numbers of the layers' mounts: each is one FUSE connection."""
    return {info.device for info in mounting.our_mounts(unit.root)}


def test_it_is_what_the_unit_says(unit: Unit, readings: Readings) -> None:
    assert unit.show("ActiveState") == "active"
    assert "containerd.service" in unit.show("Before")
    assert (unit.show("Type"), unit.show("KillMode"), unit.show("WatchdogUSec")) == ("notify", "process", "1min")
    # set where the test's own process may set it (CAP_SYS_RESOURCE)
    assert unit.show("OOMScoreAdjust") == "-999"
    assert int(unit.show("NFileDescriptorStore")) == 2 * LAYERS
    assert unit.keepers() == []
    for pid in (unit.main(), *unit.workers()):
        # with one of its own, nobody else would see the mounts
        assert os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/1/ns/mnt")
    assert unit.socket.stat().st_mode & 0o777 == 0o600


def test_a_restart_goes_on_with_workers_and_mounts(unit: Unit, readings: Readings) -> None:
    workers, before = unit.workers(), connections(unit)
    assert len(before) == LAYERS
    for _ in range(3):
        main = unit.main()
        unit.restart()
        assert unit.main() != main
    assert (unit.workers(), connections(unit)) == (workers, before)
    assert int(unit.show("NFileDescriptorStore")) == 2 * LAYERS


def test_stopped_and_started_again(unit: Unit, readings: Readings) -> None:
    """Without the daemon nothing new can be started, and everything goes on."""
    workers, before = unit.workers(), connections(unit)
    run("systemctl", "stop", NAME)
    time.sleep(1)
    assert (unit.workers(), connections(unit)) == (workers, before)
    unit.start()
    assert (unit.workers(), connections(unit)) == (workers, before)


def test_the_daemon_is_killed(unit: Unit, readings: Readings) -> None:
    workers, before = unit.workers(), connections(unit)
    for _ in range(3):
        main = unit.main()
        os.kill(main, signal.SIGKILL)
        unit.wait_for_other(main)
    assert (unit.workers(), connections(unit)) == (workers, before)


def test_everything_is_killed_at_once(unit: Unit, readings: Readings) -> None:
    """The descriptor store has what is needed."""
    before = connections(unit)
    for _ in range(3):
        main, workers = unit.main(), unit.workers()
        run("systemctl", "kill", "--kill-who=all", "--signal=SIGKILL", NAME)
        unit.wait_for_other(main)
        assert not set(unit.workers()) & set(workers)
    assert connections(unit) == before


def test_an_upgrade_and_the_way_back(node: Node, unit: Unit, readings: Readings) -> None:
    unit.restart()
    database = unit.root / "metadata.db"
    unit.use("old")
    with pytest.raises(CommandError):
        unit.restart()
    run("systemctl", "stop", NAME)
    said = unit.journal()
    assert f"written by release {__version__}; this is {OLD_VERSION}, which knows 1: install that release again" in said, said
    assert len(connections(unit)) == LAYERS, "a release that cannot go on leaves the mounts alone"
    # The state as the old release knows it: the tables with their one difference.
    with closing(sqlite3.connect(database)) as db:
        db.executescript(
            "DROP INDEX snapshots_chain; DROP TABLE history; PRAGMA user_version = 1;"
            "CREATE UNIQUE INDEX snapshots_chain ON snapshots (chain_id, ifnull(parent, 0))"
            " WHERE chain_id IS NOT NULL AND kind = 3;"
        )
    before = connections(unit)
    workers = unit.workers()
    unit.start()
    assert not set(unit.workers()) & set(workers), "its workers are of the running release"
    node.wait_for_containerd()
    snapshots = node.containerd.snapshots("puzzlefs")
    workers = unit.workers()
    unit.use("new")
    unit.restart()
    assert not set(unit.workers()) & set(workers), "an upgrade renews the workers, too"
    assert connections(unit) == before
    with closing(sqlite3.connect(database)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (tables.VERSION,)
    assert (unit.root / "metadata.db.v1").exists()
    node.wait_for_containerd()
    assert node.containerd.snapshots("puzzlefs") == snapshots


def test_a_daemon_that_hangs_is_replaced_by_the_watchdog(unit: Unit, readings: Readings) -> None:
    drop_in = Path(f"/run/systemd/system/{NAME}.d/quick.conf")
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text("[Service]\nWatchdogSec=8\nLimitCORE=0\n")
    run("systemctl", "daemon-reload")
    try:
        unit.restart()
        main, before = unit.main(), connections(unit)
        time.sleep(9)
        assert unit.main() == main, "it tells systemd that it is well"
        os.kill(main, signal.SIGSTOP)
        unit.wait_for_other(main)
        assert connections(unit) == before
    finally:
        drop_in.unlink()
        run("systemctl", "daemon-reload")


def test_a_worker_that_hangs_is_replaced_by_the_daemon(unit: Unit, readings: Readings) -> None:
    workers = unit.workers()
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    deadline = time.monotonic() + 90
    while set(unit.workers()) & set(workers):
        assert time.monotonic() < deadline, unit.journal()
        time.sleep(0.1)
