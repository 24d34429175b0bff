"""Credentials that the daemon was told during a pull, kept in its memory alone, and given to its workers when they ask.

A worker needs them when a token has expired, which may be days after the pull. They are on no disk: after a restart of the
daemon they are known again with the next pull.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

from snapshotter.daemon.localsocket import LocalSocket
from snapshotter.errors import UnavailableError
from snapshotter.registry.credentials import Credentials

REMEMBERED_MAX = 4096
"""Most repositories whose credentials are remembered; the one told longest ago is forgotten."""
MESSAGE_MAX = 64 << 10
TIMEOUT = 5.0


class Keychain:
    """A `CredentialSource` of what was told. Safe for use by many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], Credentials] = {}

    def remember(self, host: str, repository: str, credentials: Credentials) -> None:
        """`credentials` are those for `repository` of `host` from now on."""
        with self._lock:
            self._known.pop((host, repository), None)
            self._known[host, repository] = credentials
            if len(self._known) > REMEMBERED_MAX:
                del self._known[next(iter(self._known))]

    def find(self, host: str, repository: str = "", *, refused: Sequence[Credentials] = ()) -> Credentials | None:
        """See `CredentialSource`."""
        with self._lock:
            return self._known.get((host, repository))


def socket_path(address: Path) -> Path:
    """Where the daemon whose snapshots service is at `address` gives credentials to its workers."""
    return address.with_name(f"{address.stem}-credentials{address.suffix}")


class KeychainServer:
    """Gives what is in `keychain` to processes of the daemon's own user, over a socket at `path`."""

    def __init__(self, keychain: Keychain, path: Path) -> None:
        self._keychain = keychain
        self._socket = LocalSocket(path, "keychain", self._serve)

    def close(self) -> None:
        """Stop answering."""
        self._socket.close()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            connection.settimeout(TIMEOUT)
            asked = json.loads(connection.recv(MESSAGE_MAX))
            connection.send(_encoded(self._keychain.find(str(asked["host"]), str(asked["repository"]))))


class DaemonKeychain:
    """A `CredentialSource` in a worker: asks the daemon at `path`. A daemon that is gone knows nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def find(self, host: str, repository: str = "", *, refused: Sequence[Credentials] = ()) -> Credentials | None:
        """See `CredentialSource`."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(TIMEOUT)
            try:
                connection.connect(str(self._path))
                connection.send(json.dumps({"host": host, "repository": repository}).encode())
                answer = connection.recv(MESSAGE_MAX)
            except (FileNotFoundError, ConnectionRefusedError):
                return None
            except OSError as error:
                raise UnavailableError(f"registry credentials: the daemon does not answer at {self._path}") from error
        return _decoded(answer)


def _encoded(found: Credentials | None) -> bytes:
    values = None if found is None else [found.username, found.password, found.identity_token]
    return json.dumps(values).encode()


def _decoded(answer: bytes) -> Credentials | None:
    try:
        values = json.loads(answer)
        return None if values is None else Credentials(str(values[0]), str(values[1]), values[2])
    except (ValueError, LookupError, TypeError):
        raise UnavailableError("registry credentials: the daemon's answer is none") from None
