"""A network namespace behind a link of a given rate, so that what is fetched costs the time it costs over a real network."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from tests.support import tools
from tests.support.processes import CommandError, run

_NETNS = Path("/run/netns")
"""Where ip keeps the namespaces that it names: a mount that the first of them brings with it."""


class Link:
    """A network namespace, joined to this one by a veth pair.

    `inside` is its address there, `outside` ours. The networks are taken from 198.18.0.0/15, which RFC 2544 sets aside
    for measurements, one per process id, so that several can exist at once.
    """

    def __init__(self) -> None:
        number = os.getpid() % (1 << 15)
        network = int(ipaddress.IPv4Address("198.18.0.0")) + number * 4
        self.outside, self.inside = (str(ipaddress.IPv4Address(network + host)) for host in (1, 2))
        self.namespace = f"puzzlefs-{os.getpid()}"
        self._ours, self._theirs = f"pz{number}a", f"pz{number}b"
        self._made_netns = not _NETNS.exists()
        try:
            run("ip", "netns", "add", self.namespace)
            run("ip", "link", "add", self._ours, "type", "veth", "peer", "name", self._theirs, "netns", self.namespace)
            run("ip", "address", "add", f"{self.outside}/30", "dev", self._ours)
            run("ip", "link", "set", self._ours, "up")
            run("ip", "-n", self.namespace, "address", "add", f"{self.inside}/30", "dev", self._theirs)
            run("ip", "-n", self.namespace, "link", "set", "lo", "up")
            run("ip", "-n", self.namespace, "link", "set", self._theirs, "up")
        except CommandError:
            self.close()
            raise

    def shape(self, rate: str) -> None:
        """From now on, what the namespace sends comes at `rate` at most (as tc writes it: ``200mbit``)."""
        # 256 KiB: tbf needs at least rate / HZ, and segments offloaded as one may have 64 KiB
        shaper = ("root", "tbf", "rate", rate, "burst", "256k", "latency", "50ms")
        run("tc", "-n", self.namespace, "qdisc", "replace", "dev", self._theirs, *shaper)

    def inside_command(self, command: Sequence[str]) -> list[str]:
        """The command that runs `command` in the namespace."""
        return [tools.find("ip"), "netns", "exec", self.namespace, *command]

    def close(self) -> None:
        """Remove the link and the namespace."""
        run("ip", "link", "delete", self._ours, check=False)
        run("ip", "netns", "delete", self.namespace, check=False)
        if self._made_netns and _NETNS.is_dir() and not any(_NETNS.iterdir()):
            run("umount", _NETNS, check=False)
            with contextlib.suppress(OSError):
                _NETNS.rmdir()
