"""Tells systemd how the service is doing (sd_notify(3), sd_watchdog_enabled(3)); without systemd, nobody."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence

_log = logging.getLogger(__name__)


def notify(state: str, environment: Mapping[str, str] = os.environ, fds: Sequence[int] = ()) -> bool:
    """Send `state` (``READY=1``, ``STATUS=…``, ``FDSTORE=1``) to ``$NOTIFY_SOCKET``, `fds` beside it; whether it could be.

    A service manager that cannot be reached is no reason to fail: what it does not hear, it times out on.
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.connect("\0" + address[1:] if address[0] == "@" else address)
            if fds:
                socket.send_fds(sock, [state.encode()], list(fds))
            else:
                sock.sendall(state.encode())
        except OSError:
            return False
    return True


def watchdog_interval(environment: Mapping[str, str] = os.environ) -> float | None:
    """Seconds between two signs of life, a third of what the service manager waits for; None if it waits for none."""
    usec, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", str(os.getpid()))
    if not usec.isdigit() or int(usec) == 0 or pid != str(os.getpid()):
        return None
    return int(usec) / 3e6


class Watchdog:
    """Tells the service manager every `interval` seconds that the service is well, as long as `is_well` says so."""

    def __init__(
        self, interval: float | None, is_well: Callable[[], bool], environment: Mapping[str, str] = os.environ
    ) -> None:
        """Without an interval nothing is done."""
        self._interval = interval
        self._is_well = is_well
        self._environment = environment
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notify", daemon=True)
        if interval is not None:
            self._thread.start()

    def close(self) -> None:
        """Tell it no more."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(self._interval):
            if self._is_well():
                notify("WATCHDOG=1", self._environment)
            else:
                _log.error(
                    "the service does not answer itself, or does not look after its workers; systemd is not told WATCHDOG=1"
                )
