"""Has the daemon of this node pull an image: the other end of `pullserver`."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from snapshotter.daemon.addresses import pull_socket
from snapshotter.daemon.pullproto import Event, Pulled, PullRequest, parse_event
from snapshotter.errors import FailedPreconditionError, UnavailableError
from snapshotter.mount import messages


def pull(address: Path, request: PullRequest, progress: Callable[[Event], None]) -> Pulled:
    """Have the daemon whose snapshots service is at `address` do `request`; what comes of it.

    `progress` is called with everything that is reported before. An exception that it raises, as any that ends this call, ends
    the pull.

    Raises:
        UnavailableError: no daemon answers there, or it ended meanwhile.
        FailedPreconditionError: this user may not ask it.
        PuzzlefsError: the pull failed, in the category of its error.
    """
    path = pull_socket(address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.connect(str(path))
        except PermissionError:
            raise FailedPreconditionError(f"{path}: only root may have the daemon pull") from None
        except OSError as error:
            raise UnavailableError(
                f"no puzzlefs-snapshotter answers at {path} ({error.strerror or error}): does it run, and with this address?"
            ) from None
        try:
            messages.send(connection, request.message())
            while received := messages.receive(connection):
                message, _ = received
                if "error" in message:
                    raise messages.parse_error(message)
                event = parse_event(message)
                if isinstance(event, Pulled):
                    return event
                progress(event)
        except (BrokenPipeError, ConnectionError):
            pass  # as the end of what it sends
    raise UnavailableError(f"puzzlefs-snapshotter ended during the pull of {request.reference}: pull again once it runs")
