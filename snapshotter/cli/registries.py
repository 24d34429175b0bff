"""How commands reach registries: with the settings of the daemon's configuration file, where there is one."""

from __future__ import annotations

from pathlib import Path

import click

from snapshotter.daemon.addresses import CONFIGURATION
from snapshotter.daemon.config import Config, load
from snapshotter.daemon.reach import credential_source, registry_hosts
from snapshotter.registry.registries import Registries

config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Settings of registries, as the daemon's.  [default: {CONFIGURATION}, if it exists]",
)


def registries(config_path: Path | None) -> Registries:
    """Registries with the settings of `config_path`, of the default file, or none.

    Raises:
        NotFoundError, InvalidError: the file that was named cannot be used.
    """
    config, _ = configuration(config_path)
    return Registries(registry_hosts(config), credential_source(config, None))


def configuration(config_path: Path | None) -> tuple[Config, Path | None]:
    """The configuration in `config_path`, in the default file, or the defaults; and the file that it is from.

    Raises:
        NotFoundError, InvalidError: the file that was named cannot be used.
    """
    if config_path is None and CONFIGURATION.exists():
        config_path = CONFIGURATION
    return (Config() if config_path is None else load(config_path)), config_path
