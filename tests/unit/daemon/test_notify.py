"""sd_notify: what is sent arrives; without systemd nothing happens."""

from __future__ import annotations

import socket
from pathlib import Path

from snapshotter.daemon.notify import notify


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
