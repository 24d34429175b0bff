"""How commands are told where containerd and the daemon are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from snapshotter.daemon.addresses import CONFIGURATION, CONTAINERD, SNAPSHOTS

C = TypeVar("C", bound=Callable[..., Any])

containerd_option = click.option(
    "-a",
    "--address",
    type=click.Path(path_type=Path),
    envvar="CONTAINERD_ADDRESS",
    default=CONTAINERD,
    show_default=True,
    help="containerd's socket.",
)

_config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"The daemon's configuration, which names its socket.  [default: {CONFIGURATION}, if it exists]",
)
_socket_option = click.option(
    "--socket", type=click.Path(path_type=Path), help="The daemon's socket, over the configuration's."
)


def daemon_options(command: C) -> C:
    """``--config`` and ``--socket``, for `daemon_address`."""
    return _config_option(_socket_option(command))


def daemon_address(config_path: Path | None, socket: Path | None) -> Path:
    """The address of the daemon that is meant by the options of `daemon_options`.

    Raises:
        NotFoundError, InvalidError: the configuration cannot be used.
    """
    if socket is not None:
        return socket
    if config_path is None and not CONFIGURATION.exists():
        return SNAPSHOTS
    from snapshotter.daemon.config import load  # takes most of what the command takes otherwise

    return load(config_path or CONFIGURATION).address
