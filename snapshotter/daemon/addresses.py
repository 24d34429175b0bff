"""Where the daemon can be asked and is told what to do: the places of its files and sockets, and what may be one."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from snapshotter.errors import InvalidError

CONFIGURATION = Path("/etc/puzzlefs/config.toml")
"""The daemon's configuration, where no other is named."""
SNAPSHOTS = Path("/run/puzzlefs/snapshotter.sock")
"""The socket of the snapshots service, where the configuration names no other."""
CONTAINERD = Path("/run/containerd/containerd.sock")
"""containerd's own socket, where none is named."""


def socket_path(address: Path) -> Path:
    """Where the daemon whose snapshots service is at `address` answers: ``snapshotter.sock`` → ``snapshotter-status.sock``."""
    return address.with_name(f"{address.stem}-status{address.suffix}")


def pull_socket(address: Path) -> Path:
    """Where that daemon is told to pull images: ``snapshotter.sock`` → ``snapshotter-pull.sock``."""
    return address.with_name(f"{address.stem}-pull{address.suffix}")


def loopback(text: str) -> tuple[str, int]:
    """``HOST:PORT`` where the host is a loopback address, as (host, port).

    Raises:
        InvalidError: it is something else. Metrics name images and registries; whoever wants them elsewhere puts a proxy that
            asks for a password before them.
    """
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        if not separator or not 0 < int(port) < 65536 or not ipaddress.ip_address(host).is_loopback:
            raise ValueError
    except ValueError:
        raise InvalidError(f"{text!r} is no loopback address with a port such as 127.0.0.1:9464") from None
    return host, int(port)
