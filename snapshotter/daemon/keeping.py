"""Where descriptors outlive the daemon and its workers: systemd's descriptor store, or a process of ours.

sd_notify(3) and sd_pid_notify_with_fds(3) say what is sent; systemd.exec(5) and sd_listen_fds(3) what comes back at the next
start. systemd stores as many descriptors as ``FileDescriptorStoreMax=`` allows and tells the service in ``$FDSTORE``
(since 254; the unit sets it for older ones).
"""

from __future__ import annotations

import logging
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Protocol

from snapshotter.daemon.notify import notify
from snapshotter.errors import InvalidError, UnavailableError
from snapshotter.mount import messages, processes
from snapshotter.mount.connection import Connection
from snapshotter.mount.messages import Message
from snapshotter.mount.processes import Process

KIND = "keeper"
TIMEOUT = 10.0
"""Seconds in which the keeper must answer; it has nothing else to do."""
PAUSE_MAX = 5.0
"""Longest pause before a keeper that dies at once is started again, in seconds."""
LISTEN_FDS_START = 3
"""The first descriptor that systemd passes (``SD_LISTEN_FDS_START``)."""

_log = logging.getLogger(__name__)


class DescriptorStore(Protocol):
    """Keeps connections by name beyond this process. Safe to use from several threads."""

    def keep(self, name: str, connection: Connection) -> None:
        """Keep `connection`, the caller's, who leaves it open until `drop`. What cannot be kept is logged: the mount serves."""
        ...

    def drop(self, name: str) -> None:
        """Keep it no more; harmless where it is not kept."""
        ...

    def take(self) -> dict[str, Connection]:
        """What was kept before this process, the caller's to close; it stays kept. Called once, first.

        Raises:
            UnavailableError: there can be no store.
        """
        ...

    def close(self) -> None:
        """This process ends; what is kept stays kept."""
        ...


class SystemdStore:
    """systemd's."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ, first_fd: int = LISTEN_FDS_START) -> None:
        """`environment` as systemd gave it; what is for this process alone is taken out of it."""
        self._environment = environment
        self._given = listen_fds(environment, first_fd)

    @staticmethod
    def is_there(environment: Mapping[str, str] = os.environ) -> bool:
        """Whether the service manager has such a store for this service."""
        size = environment.get("FDSTORE", "")
        return bool(environment.get("NOTIFY_SOCKET")) and size.isdigit() and int(size) > 0

    def keep(self, name: str, connection: Connection) -> None:
        """See `DescriptorStore`, and so below."""
        if not notify(f"FDSTORE=1\nFDNAME={name}", self._environment, connection.fds):
            _log.warning("systemd does not take the descriptors of mount %s, which lives while daemon or worker do", name)

    def drop(self, name: str) -> None:
        notify(f"FDSTOREREMOVE=1\nFDNAME={name}", self._environment)

    def take(self) -> dict[str, Connection]:
        given, self._given = self._given, {}
        taken = {}
        for name, fds in given.items():
            try:
                taken[name] = Connection.of(fds)
            except InvalidError as error:
                _log.warning("systemd gave back what is no mount's under the name %s: %s", name, error)
                self.drop(name)
        return taken

    def close(self) -> None:
        pass


def listen_fds(environment: MutableMapping[str, str], first_fd: int = LISTEN_FDS_START) -> dict[str, list[int]]:
    """The descriptors that systemd passed to this process, by name; they and what names them are passed on to no child."""
    pid, count, names = (environment.pop(key, "") for key in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or not count.isdigit():
        return {}
    found: dict[str, list[int]] = {}
    listed = names.split(":")
    for index in range(int(count)):
        fd = first_fd + index
        os.set_inheritable(fd, False)
        found.setdefault(listed[index] if index < len(listed) else "", []).append(fd)
    return found


class KeeperStore:
    """A process of ours (`mount.keeper`): found if an earlier daemon started it, started anew whenever it ends."""

    def __init__(self, directory: Path) -> None:
        """Its socket is in `directory`. Nothing is done before `take`."""
        self._directory = directory
        self._lock = threading.RLock()
        self._kept: dict[str, Connection] = {}
        self._closing = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._child: Process | None = None
        self._sock: socket.socket
        self._watcher = threading.Thread(target=self._watch, name="keeper", daemon=True)

    def keep(self, name: str, connection: Connection) -> None:
        """See `DescriptorStore`, and so below."""
        with self._lock:
            self._kept[name] = connection
            self._try({"do": "keep", "name": name}, connection.fds)

    def drop(self, name: str) -> None:
        with self._lock:
            self._kept.pop(name, None)
            self._try({"do": "drop", "name": name})

    def take(self) -> dict[str, Connection]:
        taken: dict[str, Connection] = {}
        with self._lock:
            self._sock = self._find() or self._start()
            self._watcher.start()
            try:
                names = self._ask({"do": "list"})[0].get("names")
                for name in names if isinstance(names, list) else []:
                    answer, fds = self._ask({"do": "give", "name": name})
                    if "error" not in answer:  # gone in the meantime
                        taken[str(name)] = Connection.of(fds)
            except (OSError, InvalidError, UnavailableError) as error:
                _log.error("the keeper of descriptors gives nothing back: %s", error)
            return taken

    def close(self) -> None:
        with self._lock:
            self._closing = True
        if self._watcher.is_alive():
            os.eventfd_write(self._wake, 1)
            self._watcher.join()
            self._sock.close()
        if self._child is not None:
            self._child.abandon()
        os.close(self._wake)

    def _try(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        try:
            self._ask(message, fds)
        except (OSError, InvalidError, UnavailableError) as error:
            # It has ended, and the watcher is about to start another, which is given everything.
            _log.debug("the keeper of descriptors: %s", error)

    def _ask(self, message: Message, fds: tuple[int, ...] = ()) -> tuple[Message, list[int]]:
        messages.send(self._sock, message, fds)
        received = messages.receive(self._sock)
        if received is None:
            raise UnavailableError("it has hung up")
        return received

    def _find(self) -> socket.socket | None:
        for path in processes.sockets(self._directory, KIND):
            try:
                sock = processes.connect(path)
                sock.settimeout(TIMEOUT)
                messages.send(sock, {"do": "list"})
                if messages.receive(sock) is not None:
                    return sock
                sock.close()
            except (OSError, UnavailableError, InvalidError):
                processes.kill_by(path)
            path.unlink(missing_ok=True)
        return None

    def _start(self) -> socket.socket:
        # The directory is for those who look at processes: it tells whose keeper this is.
        command = [sys.executable, "-m", "snapshotter.mount.keeper", "--directory", str(self._directory)]
        _, sock, self._child = processes.start(command, self._directory, KIND)
        sock.settimeout(TIMEOUT)
        return sock

    def _watch(self) -> None:
        pause = 0.0
        while True:
            started = time.monotonic()
            poll = select.poll()
            poll.register(self._sock, 0)  # POLLHUP: it has ended
            poll.register(self._wake, select.POLLIN)
            if self._wake in {fd for fd, _ in poll.poll()}:
                return
            pause = 0.0 if time.monotonic() - started > PAUSE_MAX else min(PAUSE_MAX, 2 * pause + 0.1)
            _log.warning("the keeper of descriptors has ended: another is started and given what it had")
            with self._lock:
                if self._closing:
                    return
                self._again()
            time.sleep(pause)

    def _again(self) -> None:
        """A new keeper, which is given everything. One that cannot be started is tried again by the watcher."""
        self._sock.close()
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None
        for path in processes.sockets(self._directory, KIND):
            path.unlink(missing_ok=True)
        try:
            self._sock = self._start()
        except UnavailableError as error:
            _log.error("%s", error)
            self._sock, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            other.close()
            return
        for name, connection in self._kept.items():
            self._try({"do": "keep", "name": name}, connection.fds)


class Held:
    """Every connection that this daemon holds, kept in a store beside it; what an earlier daemon held can be taken over.

    For mounts that workers serve (`supervisor`) and for those that the daemon serves itself. Safe to use from several threads.
    """

    def __init__(self, store: DescriptorStore) -> None:
        """`open` comes first; `settle` is to follow when everybody has taken what is theirs."""
        self._store = store
        self._lock = threading.Lock()
        self._mine: dict[str, Connection] = {}
        self._found: dict[str, Connection] = {}

    def open(self) -> None:
        """Take from the store what an earlier daemon left there. The root must be ours alone by then.

        Raises:
            UnavailableError: there can be no store.
        """
        self._found = self._store.take()

    def found(self) -> dict[str, Connection]:
        """What an earlier daemon held and nobody has taken yet."""
        with self._lock:
            return dict(self._found)

    def take(self, name: str) -> Connection | None:
        """What an earlier daemon held as `name`; held from now on, until `release`."""
        with self._lock:
            connection = self._found.pop(name, None)
            if connection is not None:
                self._mine[name] = connection
        if connection is not None:
            self._store.keep(name, connection)
        return connection

    def hold(self, name: str, connection: Connection) -> None:
        """Hold a mounted connection: it outlives this process from now on, and is closed by `release`."""
        with self._lock:
            # A found one is the same connection by another descriptor.
            other = self._found.pop(name, None)
            self._mine[name] = connection
        self._store.keep(name, connection)
        if other is not None and other is not connection:
            other.close()

    def release(self, name: str) -> None:
        """Let go of it here and in the store; harmless where it is not held."""
        with self._lock:
            held = [self._mine.pop(name, None), self._found.pop(name, None)]
        self._store.drop(name)
        for connection in held:
            if connection is not None:
                connection.close()

    def settle(self) -> None:
        """Let go of what was found and nobody wants."""
        for name in self.found():
            self.release(name)

    def close(self) -> None:
        """This process ends; the store, and whoever serves, hold everything on."""
        self._store.close()
        with self._lock:
            for connection in [*self._mine.values(), *self._found.values()]:
                connection.close()
            self._mine.clear()
            self._found.clear()
