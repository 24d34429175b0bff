"""Processes that outlive the daemon that started them, each with a socket by which the next daemon finds it.

The socket is bound, and the starter connected to it, before the process exists: so there is no moment at which a process runs
that nobody could find, and what the starter has sent is heard before anybody else.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from snapshotter.errors import UnavailableError

SUFFIX = ".sock"


class Process(Protocol):
    """A running process, a child or not."""

    @property
    def pid(self) -> int:
        """Its number."""
        ...

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for its end: the exit status, negative for a signal, None where it cannot be known.

        Raises:
            TimeoutError: it has not ended after `timeout` seconds.
        """
        ...

    def kill(self) -> None:
        """SIGKILL; harmless if it has ended."""
        ...


class Child:
    """A `Process` that this one started."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """See `Process`, and so below."""
        return self._process.pid

    def wait(self, timeout: float | None = None) -> int | None:
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError from None

    def kill(self) -> None:
        self._process.kill()


class Found:
    """A `Process` that another one started, by its pidfd (pidfd_open(2)); it goes with this object."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self._pid = pid
        self._pidfd = pidfd

    def __del__(self) -> None:
        os.close(self._pidfd)

    @property
    def pid(self) -> int:
        """See `Process`, and so below."""
        return self._pid

    def wait(self, timeout: float | None = None) -> int | None:
        poll = select.poll()  # not select(2): descriptors may be numbered beyond 1024
        poll.register(self._pidfd, select.POLLIN)
        if not poll.poll(None if timeout is None else int(timeout * 1000)):
            raise TimeoutError
        return None

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


def start(command: Sequence[str], directory: Path, kind: str) -> tuple[Path, socket.socket, Child]:
    """Start a process by `command`, to which ``--socket-fd N --name NAME`` is added, in a session of its own.

    It listens at the path that is answered, a new one in `directory`, and the connected socket is the first that it hears.

    Raises:
        UnavailableError: it does not start.
    """
    path = directory / f"{kind}-{secrets.token_hex(6)}{SUFFIX}"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        with _short(path) as short:
            listener.bind(short)
        try:
            os.chmod(path, 0o600)
            listener.listen(16)
            ours = connect(path)
            try:
                process = subprocess.Popen(
                    [*command, "--socket-fd", str(listener.fileno()), "--name", path.stem],
                    pass_fds=[listener.fileno()],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                raise UnavailableError(f"starting a {kind} ({command[0]}): {error}") from error
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    return path, ours, Child(process)


def sockets(directory: Path, kind: str) -> list[Path]:
    """The sockets of that kind in `directory`, of processes that may have ended."""
    return sorted(directory.glob(f"{kind}-*{SUFFIX}"))


def kill_by(path: Path) -> None:
    """Kill the process that `start` gave the socket `path`, if it runs: one that is there and does not answer."""
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        # The process may end meanwhile, and its number be another's: by the descriptor it cannot be mistaken.
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(int(directory.name))
            try:
                if path.stem.encode() in (directory / "cmdline").read_bytes().split(b"\0"):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)


def connect(path: Path) -> socket.socket:
    """A connection to the process that listens at `path`.

    Raises:
        UnavailableError: none does.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _short(path) as short:
            sock.connect(short)
    except OSError as error:
        sock.close()
        raise UnavailableError(f"{path}: {error.strerror or error}") from error
    return sock


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name of `path` that fits the 107 bytes of a Unix socket's path, however long the directory's is."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
