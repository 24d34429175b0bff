"""Pulls images for ``puzzlefs pull`` (`pullclient`), in the daemon, which has connections, tokens and everything else at hand.

A command that did it itself would take longer to be loaded than a lazy image takes to be pulled.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from snapshotter.daemon.localsocket import LocalSocket
from snapshotter.daemon.pullproto import Event, Pulled, PullRequest, event_message
from snapshotter.errors import PuzzlefsError, UnavailableError
from snapshotter.mount import messages

PULLS_MAX = 32
"""Most pulls at a time; whoever comes then is told to try again later."""
TIMEOUT = 10.0
"""Seconds in which a client says what it wants, and in which it takes what it is told."""

_log = logging.getLogger(__name__)


class ClientGoneError(Exception):
    """The client has hung up, or the daemon ends: nobody wants the image any more."""


class PullServer:
    """Has `pull` do what clients at the Unix socket `path` ask for; it is told the request and whom to tell of progress."""

    def __init__(self, path: Path, pull: Callable[[PullRequest, Callable[[Event], None]], Pulled]) -> None:
        """Listens at once."""
        self._pull = pull
        self._places = threading.BoundedSemaphore(PULLS_MAX)
        self._closing = threading.Event()
        self._socket = LocalSocket(path, "pulls", self._take)

    def close(self) -> None:
        """Take no more requests. Pulls under way end at their next step."""
        self._closing.set()
        self._socket.close()

    def _take(self, connection: socket.socket) -> None:
        try:
            threading.Thread(target=self._serve, args=(connection,), name="pull", daemon=True).start()
        except RuntimeError:  # no thread can be had now: the client is told by the end of its connection
            connection.close()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, ClientGoneError):
            connection.settimeout(TIMEOUT)
            try:
                messages.send(connection, event_message(self._answer(connection)))
            except PuzzlefsError as error:
                if self._closing.is_set():
                    raise ClientGoneError from None  # it is the daemon's end that is in the way
                messages.send(connection, messages.error_message(None, error))
            except (OSError, ClientGoneError):
                raise
            except Exception as error:
                _log.exception("a pull failed unexpectedly")
                messages.send(connection, messages.error_message(None, error))

    def _answer(self, connection: socket.socket) -> Pulled:
        received = messages.receive(connection)
        if received is None:
            raise ClientGoneError
        message, fds = received
        messages.close_all(fds)
        request = PullRequest.parse(message)

        def progress(event: Event) -> None:
            if self._closing.is_set() or _has_hung_up(connection):
                raise ClientGoneError
            messages.send(connection, event_message(event))

        if not self._places.acquire(blocking=False):
            raise UnavailableError(f"{PULLS_MAX} images are being pulled at the moment: pull {request.reference} later")
        try:
            return self._pull(request, progress)
        finally:
            self._places.release()


def _has_hung_up(connection: socket.socket) -> bool:
    """Whether the other end, which has nothing more to say, is gone."""
    poll = select.poll()
    poll.register(connection, select.POLLIN | select.POLLRDHUP)
    return bool(poll.poll(0))
