"""Keeps the machine's idle processors from sleeping, through the kernel's quality of service for power management.

A process that has /dev/cpu_dma_latency open says how long a processor may take to wake, for all of them
(Documentation/power/pm_qos_interface.rst). At 0 an idle one polls, in the kernel. The demand ends with the process.
"""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path

DEVICE = Path("/dev/cpu_dma_latency")
_NONE = struct.pack("=i", 0)
_ANY = struct.pack("=i", 2_000_000_000)  # PM_QOS_CPU_LATENCY_DEFAULT_VALUE, as if nothing was demanded


class Processors:
    """This process's demand on all processors. Where the device is missing or not open to this user, nothing is demanded."""

    def __init__(self, device: Path = DEVICE) -> None:
        """Open the device; that alone demands nothing."""
        self._fd: int | None = None
        with contextlib.suppress(OSError):
            self._fd = os.open(device, os.O_WRONLY | os.O_CLOEXEC)

    def keep_awake(self, awake: bool) -> None:
        """Demand that idle processors do not sleep, or that no more: a system call of 1 to 5 µs."""
        if self._fd is not None:
            try:
                os.write(self._fd, _NONE if awake else _ANY)
            except OSError:
                self.close()

    def close(self) -> None:
        """Demand nothing any more."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
