"""Asks a running daemon what it is doing: the other end of `statusserver`."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from snapshotter.daemon.addresses import socket_path
from snapshotter.errors import CorruptError, FailedPreconditionError, UnavailableError

TIMEOUT = 60.0
_ANSWER_MAX = 64 << 20


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(str(self._path))


def status(address: Path) -> dict[str, Any]:
    """What the daemon whose snapshots service is at `address` is doing (`status.Overview.to_json`).

    Raises:
        UnavailableError: no daemon answers there.
        FailedPreconditionError: this user may not ask it.
        CorruptError: what answers is no daemon of ours.
    """
    answer = json.loads(_get(address, "/status"))
    if not isinstance(answer, dict) or "version" not in answer:
        raise CorruptError(f"{socket_path(address)}: what answers there is no PuzzleFS daemon")
    return answer


def metrics(address: Path) -> str:
    """Its metrics, in Prometheus' text form.

    Raises:
        As `status`.
    """
    return _get(address, "/metrics").decode()


def _get(address: Path, page: str) -> bytes:
    path = socket_path(address)
    connection = _Connection(path)
    try:
        connection.request("GET", page)
        response = connection.getresponse()
        body = response.read(_ANSWER_MAX)
    except PermissionError:
        raise FailedPreconditionError(f"{path}: only root may ask the daemon") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnavailableError(
            f"no puzzlefs-snapshotter answers at {path} ({reason}): does it run, and with this address?"
        ) from None
    finally:
        connection.close()
    if response.status != 200:
        raise CorruptError(f"{path} answers {response.status} to {page}: what answers there is no PuzzleFS daemon")
    return body
