"""Finds what a test session left behind: mounts, processes, descriptors, temporary files.

Everything that is started inherits an environment variable with this session's name, so that a process that was orphaned
(a containerd shim, a mount worker) is found too, and nobody else's is.
"""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
import time
import uuid
from pathlib import Path

from tests.support import mounts

MARK = "PUZZLEFS_TEST_SESSION"
"""The variable; a program that is started with an environment of its own should have it in there."""

_POLLERS = 8
"""gRPC's engine keeps a few epoll and event descriptors for the process, whatever the number of channels and servers."""


class LeakCheck:
    """Takes stock when made; `leaks` tells what has come since.

    Temporary files get a directory of their own, with a short path: the sockets that tests put there may have 107 bytes in all.
    `beside` is another one that may have mounts below it, pytest's own.
    """

    def __init__(self, beside: Path) -> None:
        self._beside = beside
        self._directory = Path(tempfile.mkdtemp(prefix="t-"))
        self._name = uuid.uuid4().hex
        self._before = {key: os.environ.get(key) for key in (MARK, "TMPDIR")}
        self._tempdir = tempfile.tempdir
        os.environ[MARK] = self._name
        os.environ["TMPDIR"] = tempfile.tempdir = str(self._directory)
        self._descriptors = _descriptors()

    def leaks(self, patience: float = 5) -> list[str]:
        """One line for everything left behind; what is just ending gets `patience` seconds. Puts the environment back."""
        tempfile.tempdir = self._tempdir
        for key, value in self._before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value
        gc.collect()
        deadline = time.monotonic() + patience
        while (found := self._look()) and time.monotonic() < deadline:
            time.sleep(0.1)
        if not found:
            self._directory.rmdir()
        return found

    def _look(self) -> list[str]:
        below = [point for place in (self._directory, self._beside) for point in mounts.mount_points(place)]
        found = [f"mount: {os.fsdecode(point)}" for point in below]
        found += [f"process {pid}: {command}" for pid, command in _processes(f"{MARK}={self._name}".encode())]
        found += [f"temporary file: {path}" for path in self._directory.iterdir()]
        opened = {fd: target for fd, target in _descriptors().items() if self._descriptors.get(fd) != target}
        pollers = [fd for fd, target in opened.items() if target in ("anon_inode:[eventpoll]", "anon_inode:[eventfd]")]
        if len(pollers) <= _POLLERS:
            opened = {fd: target for fd, target in opened.items() if fd not in pollers}
        return found + [f"descriptor {fd}: {target}" for fd, target in opened.items()]


def _processes(mark: bytes) -> list[tuple[int, str]]:
    found = []
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit() or int(directory.name) == os.getpid():
            continue
        try:
            if mark in (directory / "environ").read_bytes().split(b"\0"):
                command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append((int(directory.name), command))
        except OSError:
            continue  # ended meanwhile
    return found


def _descriptors() -> dict[int, str]:
    opened = {}
    for name in os.listdir("/proc/self/fd"):
        # pytest changes the three standard ones as it captures output
        if int(name) > 2:
            with contextlib.suppress(OSError):  # the one that listed
                opened[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return opened
