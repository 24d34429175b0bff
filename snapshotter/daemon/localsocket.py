"""Listens at a Unix socket for processes of the daemon's own user, and for nobody else."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

_BACKLOG = 64


class LocalSocket:
    """Takes connections (SEQPACKET) at `path`, and calls `serve` with each, in a thread that is called `name`.

    `serve` closes the connection. While it runs no other connection is taken: what takes long belongs into a thread of its own.
    """

    def __init__(self, path: Path, name: str, serve: Callable[[socket.socket], None]) -> None:
        """Listens at once, in place of a socket that a dead daemon left.

        Raises:
            OSError: it cannot.
        """
        self._path = path
        self._serve = serve
        path.unlink(missing_ok=True)  # the snapshots service's socket, which is bound first, says that no other daemon has it
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mask = os.umask(0o177)
        try:
            self._listener.bind(str(path))
        finally:
            os.umask(mask)
        self._listener.listen(_BACKLOG)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop taking connections; those that were taken go on."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._closing:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                continue
            _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if user != os.geteuid():
                connection.close()
                continue
            self._serve(connection)
