"""sd_notify: what is sent arrives; without systemd nothing happens."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from snapshotter.daemon.notify import Watchdog, notify, watchdog_interval


def test_the_state_arrives_at_a_path_and_at_an_abstract_name(tmp_path: Path) -> None:
    for address, bound in ((str(tmp_path / "n"), str(tmp_path / "n")), (f"@pz-{tmp_path.name}", f"\0pz-{tmp_path.name}")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(bound)
            assert notify("READY=1", {"NOTIFY_SOCKET": address})
            assert sock.recv(100) == b"READY=1"


def test_without_a_service_manager_nobody_is_told(tmp_path: Path) -> None:
    assert not notify("READY=1", {})
    assert not notify("READY=1", {"NOTIFY_SOCKET": "relative"})
    assert not notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "gone")})


def test_signs_of_life_are_sent_at_a_third_of_what_systemd_waits_for() -> None:
    assert watchdog_interval({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}) == 20
    assert watchdog_interval({"WATCHDOG_USEC": "60000000"}) == 20
    assert watchdog_interval({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}) is None
    assert watchdog_interval({"WATCHDOG_USEC": "0"}) is None
    assert watchdog_interval({}) is None


def test_a_service_that_is_not_well_says_nothing(tmp_path: Path) -> None:
    asked, well = [], [True, True, False]

    def is_well() -> bool:
        asked.append(1)
        return well.pop(0) if well else False

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "n"))
        sock.settimeout(10)
        with contextlib.closing(Watchdog(0.01, is_well, {"NOTIFY_SOCKET": str(tmp_path / "n")})):
            assert [sock.recv(100) for _ in range(2)] == [b"WATCHDOG=1"] * 2
            while len(asked) < 5:
                pass
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            raise AssertionError(sock.recv(100))
