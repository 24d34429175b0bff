"""Answers ``GET /status`` (JSON) and ``GET /metrics`` (Prometheus) over HTTP: on a Unix socket of root's, and, if configured,
``/metrics`` alone on a loopback port.

It reads and changes nothing. A question takes at most one thread and `TIMEOUT` seconds of a slow client.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import logging
import os
import socket
import socketserver
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from snapshotter.daemon.addresses import loopback
from snapshotter.daemon.metrics import CONTENT_TYPE, expose
from snapshotter.daemon.status import Overview
from snapshotter.errors import FailedPreconditionError

TIMEOUT = 10.0

_log = logging.getLogger(__name__)


class _Handler(http.server.BaseHTTPRequestHandler):
    timeout = TIMEOUT
    server: _Server

    def do_GET(self) -> None:
        pages: dict[str, Callable[[], tuple[str, bytes]]] = {"/metrics": self._metrics}
        if self.server.private:
            pages["/status"] = self._status
        page = pages.get(self.path.partition("?")[0])
        if page is None:
            self.send_error(404, f"there are {' and '.join(pages)}")
            return
        kind, body = page()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        """For log lines; a client on a Unix socket has no address."""
        return str(self.client_address[0]) if self.client_address else "local"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        _log.debug(format, *args)

    def _status(self) -> tuple[str, bytes]:
        return "application/json", json.dumps(self.server.take().to_json()).encode() + b"\n"

    def _metrics(self) -> tuple[str, bytes]:
        return CONTENT_TYPE, expose(self.server.take())


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 16

    def __init__(self, family: socket.AddressFamily, address: Any, take: Callable[[], Overview], *, private: bool) -> None:
        self.address_family = family
        self.take = take
        self.private = private
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up, or a question that failed: a line in the log, and nothing for anybody else."""
        _log.debug("answering a question about the status failed", exc_info=True)


class StatusServer:
    """Serves what `take` gathers at the Unix socket `path`, and metrics at `metrics` (``127.0.0.1:9464``) if given."""

    def __init__(self, path: Path, metrics: str | None, take: Callable[[], Overview]) -> None:
        """Listens at once.

        Raises:
            InvalidError: `metrics` is no loopback address.
            FailedPreconditionError: one of them cannot be listened at.
        """
        self._path = path
        self._servers: list[_Server] = []
        self._threads: list[threading.Thread] = []
        place = None if metrics is None else loopback(metrics)
        try:
            path.unlink(missing_ok=True)
            mask = os.umask(0o177)
            try:
                self._servers.append(_Server(socket.AF_UNIX, str(path), take, private=True))
            finally:
                os.umask(mask)
            if place is not None:
                family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
                self._servers.append(_Server(family, place, take, private=False))
        except OSError as error:
            self.close()
            where = metrics if self._servers else path
            raise FailedPreconditionError(
                f"cannot answer questions about the status at {where}: {error.strerror or error}"
            ) from None
        for server in self._servers:
            thread = threading.Thread(target=server.serve_forever, name="status", daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        """Stop listening. Calling it again does nothing."""
        for server, thread in zip(self._servers, self._threads, strict=False):
            server.shutdown()
            thread.join()
        for server in self._servers:
            server.server_close()
        if self._servers:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
        self._servers, self._threads = [], []
