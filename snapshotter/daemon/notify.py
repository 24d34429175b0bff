"""Tells systemd how the service is doing (sd_notify(3)); without systemd, nobody."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


def notify(state: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Send `state` (``READY=1``, ``STOPPING=1``, ``STATUS=…``) to ``$NOTIFY_SOCKET``; whether there was one.

    A service manager that cannot be reached is no reason to fail: what it does not hear, it times out on.
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.connect("\0" + address[1:] if address[0] == "@" else address)
            sock.sendall(state.encode())
        except OSError:
            return False
    return True
