"""Child processes: run one to its end, or keep one as a service and stop it by its process id."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.support import tools


class CommandError(Exception):
    """A command ended with a status other than 0; the message has its last output."""


def run(
    *command: str | Path, timeout: float = 120, check: bool = True, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return what it wrote; undecodable bytes come as surrogates.

    Raises:
        CommandError: it ended with another status than 0, and `check` is set.
        subprocess.TimeoutExpired: it took longer than `timeout` seconds.
    """
    words = [tools.find(str(command[0])) if "/" not in str(command[0]) else str(command[0]), *map(str, command[1:])]
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=timeout,
        env=environment or tools.environment(),
        start_new_session=True,
    )
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise CommandError(f"{' '.join(map(str, command))}: exit status {done.returncode}: {said}")
    return done


class Service:
    """A process that runs until `stop`, its output in a file.

    It gets a session of its own, so that an interrupt from the terminal reaches only its owner, who then stops it in order.
    """

    def __init__(self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.name = Path(str(command[0])).name
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment or tools.environment(),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_until(self, ready: Callable[[], bool], what: str, timeout: float = 30) -> None:
        """Return once `ready` answers true.

        Raises:
            CommandError: the process ended first, or the time is over; the message has the end of its log.
        """
        deadline = time.monotonic() + timeout
        while not ready():
            status = self.process.poll()
            if status is not None:
                raise CommandError(f"{self.name} ended with status {status} before {what}:\n{self.log_end()}")
            if time.monotonic() > deadline:
                raise CommandError(f"{self.name}: not {what} after {timeout} s:\n{self.log_end()}")
            time.sleep(0.02)

    def log_end(self, size: int = 4000) -> str:
        """The end of what the process wrote."""
        return self.log.read_text(errors="replace")[-size:]

    def stop(self, timeout: float = 20) -> int:
        """End the process (SIGTERM, then SIGKILL after `timeout` seconds) and return its status."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()


def find(wanted: Callable[[list[str]], bool]) -> list[int]:
    """The processes whose command line `wanted` accepts."""
    found = []
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            words = (directory / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:
            continue
        if wanted(words):
            found.append(int(directory.name))
    return found


def kill(pid: int, timeout: float = 10) -> None:
    """Kill a process that is not our child, and wait until it is gone."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        os.kill(pid, signal.SIGKILL)
        select.select([fd], [], [], timeout)
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)
