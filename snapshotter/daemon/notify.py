"""Tells systemd how the service is doing (sd_notify(3)); without systemd, nobody."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence


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
