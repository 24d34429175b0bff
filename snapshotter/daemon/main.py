"""``puzzlefs-snapshotter``: reads its configuration, serves until SIGTERM or SIGINT, and says in one line why it cannot."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import resource
import signal
import sys
from pathlib import Path

import click

from snapshotter import __version__
from snapshotter.daemon import logs
from snapshotter.daemon.addresses import CONFIGURATION
from snapshotter.daemon.compose import running
from snapshotter.daemon.config import LOG_LEVELS, Config, load
from snapshotter.daemon.notify import Watchdog, notify, watchdog_interval
from snapshotter.errors import PuzzlefsError

_log = logging.getLogger(__name__)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Configuration file.  [default: {CONFIGURATION}, if it exists]",
)
@click.option("--root", type=click.Path(path_type=Path, file_okay=False), help="Directory of state and cache, over the file's.")
@click.option("--address", type=click.Path(path_type=Path), help="Unix socket to serve, over the file's.")
@click.option("--log-level", type=click.Choice(LOG_LEVELS), help="Over the file's.")
@click.version_option(__version__, prog_name="puzzlefs-snapshotter")
def serve(config_path: Path | None, root: Path | None, address: Path | None, log_level: str | None) -> None:
    """Serve containerd's snapshots API: start containers from PuzzleFS images before they are downloaded.

    Ends at SIGTERM or SIGINT; running containers keep their file systems. Exit status: 0 ended on request; 1 cannot start,
    with the reason on stderr; 2 wrong usage.
    """
    if config_path is None and CONFIGURATION.exists():
        config_path = CONFIGURATION
    config = load(config_path) if config_path is not None else Config()
    config = dataclasses.replace(
        config,
        root=_absolute(root) or config.root,
        address=_absolute(address) or config.address,
        log_level=log_level or config.log_level,
    )
    logs.set_up(config.log_level)
    raise_descriptor_limit()
    # Blocked before any thread is started, so that every thread leaves the signals to the sigwait below.
    ending = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    with running(config, config_path) as is_well, contextlib.closing(Watchdog(watchdog_interval(), is_well)):
        notify("READY=1")
        _log.info("serving at %s, root %s", config.address, config.root)
        signal.sigwait(ending)
        notify("STOPPING=1")
        _log.info("ending")


def raise_descriptor_limit() -> None:
    """Allow as many open files as we may (getrlimit(2)), for this process and those it starts: a mount takes two to three."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _absolute(path: Path | None) -> Path | None:
    return path if path is None else Path.cwd() / path


def main() -> None:
    """The entry point: exits with the status that `serve` documents."""
    try:
        serve.main(standalone_mode=False)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.ClickException as error:
        print(f"puzzlefs-snapshotter: {error.format_message()}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        print(f"puzzlefs-snapshotter: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except PuzzlefsError as error:
        print(f"puzzlefs-snapshotter: {error}", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)
