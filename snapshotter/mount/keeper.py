"""Holds the descriptors of mounts and nothing else: what systemd's descriptor store does, where there is no systemd.

A process of its own, started by the daemon: daemon and workers may all be killed at once, and the mounts live. It is small,
does nothing that could fail, and lets go of a connection when the kernel says that the last user of its mount is gone.

Requests (`messages`), each answered: ``keep`` NAME with descriptors beside it, ``drop`` NAME, ``list``, and ``give`` NAME,
whose answer has the descriptors beside it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import stat
import sys

from snapshotter.errors import InvalidError, NotFoundError, PuzzlefsError
from snapshotter.mount import messages
from snapshotter.mount.messages import Message, typed


class Keeper:
    """Keeps descriptors by name for the daemons that connect to `listener`, one after the other."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._daemon: socket.socket | None = None
        self._kept: dict[str, list[int]] = {}
        self._poll = select.poll()

    def run(self) -> None:
        """Serve until no daemon is there and nothing is kept."""
        while True:
            # The daemon that is gone has nothing more to say; then the next one is heard.
            source = self._daemon or self._listener
            self._poll.register(source, select.POLLIN)
            ready = {fd for fd, _ in self._poll.poll(None if self._daemon or self._kept else 0)}
            self._poll.unregister(source)
            for name in [name for name, fds in self._kept.items() if not ready.isdisjoint(fds)]:
                self._drop(name)
            if source.fileno() not in ready:
                if not ready and self._daemon is None and not self._kept:
                    return
            elif self._daemon is None:
                self._daemon = self._listener.accept()[0]
            else:
                self._hear(self._daemon)

    def _hear(self, daemon: socket.socket) -> None:
        try:
            received = messages.receive(daemon)
            if received is None:
                daemon.close()
                self._daemon = None
                return
            answer, fds = self._do(*received)
        except PuzzlefsError as error:
            answer, fds = {"error": str(error)}, ()
        with contextlib.suppress(OSError):
            messages.send(daemon, answer, fds)

    def _do(self, message: Message, fds: list[int]) -> tuple[Message, tuple[int, ...]]:
        match message.get("do"):
            case "keep":
                self._keep(typed(message, "name", str), fds)
                return {}, ()
            case "drop":
                self._drop(typed(message, "name", str))
                return {}, ()
            case "list":
                return {"names": sorted(self._kept)}, ()
            case "give":
                kept = self._kept.get(typed(message, "name", str))
                if kept is None:
                    raise NotFoundError(f"{message['name']} is not kept")
                return {}, tuple(kept)
            case other:
                messages.close_all(fds)
                raise InvalidError(f"unknown request {other!r} to the keeper of descriptors")

    def _keep(self, name: str, fds: list[int]) -> None:
        self._drop(name)
        self._kept[name] = fds
        for fd in fds:
            if stat.S_ISCHR(os.fstat(fd).st_mode):
                self._poll.register(fd, 0)  # POLLERR: the mount is gone

    def _drop(self, name: str) -> None:
        for fd in self._kept.pop(name, []):
            with contextlib.suppress(KeyError):
                self._poll.unregister(fd)
            os.close(fd)


def main(arguments: list[str]) -> int:
    """Run a keeper; ``--socket-fd N`` is the socket to listen on. Returns the exit status."""
    # What ends a daemon at a terminal must not end this.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=int(arguments[arguments.index("--socket-fd") + 1])) as listener:
        Keeper(listener).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
