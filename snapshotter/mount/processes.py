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
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from snapshotter.errors import UnavailableError

SUFFIX = ".sock"


class Process:
    """A running process, a child or not. Safe to use from several threads."""

    def __init__(self, pid: int, pidfd: int, *, child: bool) -> None:
        """`pidfd` (pidfd_open(2)) is this object's to close, which it does when the process has ended."""
        self.pid = pid
        self._pidfd: int | None = pidfd
        self._child = child
        self._status: int | None = None
        self._lock = threading.Lock()

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for its end: the exit status, negative for a signal, None where it cannot be known.

        Raises:
            TimeoutError: it has not ended after `timeout` seconds.
        """
        with self._lock:
            if self._pidfd is None:
                return self._status
            pidfd = os.dup(self._pidfd)
        try:
            poll = select.poll()  # not select(2): descriptors may be numbered beyond 1024
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(None if timeout is None else int(timeout * 1000)):
                raise TimeoutError
        finally:
            os.close(pidfd)
        with self._lock:
            if self._pidfd is not None:
                if self._child:
                    self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
                self._close()
            return self._status

    def kill(self) -> None:
        """SIGKILL; harmless if it has ended."""
        with self._lock, contextlib.suppress(ProcessLookupError):
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def abandon(self) -> None:
        """Look after it no more: it is to live on."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


def start(command: Sequence[str], directory: Path, kind: str) -> tuple[Path, socket.socket, Process]:
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
                pid = _spawn([*command, "--socket-fd", str(listener.fileno()), "--name", path.stem], listener.fileno())
            except OSError as error:
                ours.close()
                raise UnavailableError(f"starting a {kind} ({command[0]}): {error}") from error
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    return path, ours, Process(pid, os.pidfd_open(pid), child=True)


def _spawn(arguments: list[str], fd: int) -> int:
    """Start a program with `fd` open beside the standard descriptors, in a session of its own; its process id.

    Not by subprocess, which warns of children that are to live on. No other descriptor of Python's is inherited (PEP 446).
    """
    actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, fd, fd)]
    return os.posix_spawnp(arguments[0], arguments, os.environ, file_actions=actions, setsid=True)


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
