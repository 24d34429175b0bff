"""How commands reach registries: with the settings of the daemon's configuration file, where there is one.

What registries need is imported when it is needed: it takes 0.1 s, a third of what a command takes to begin.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import click

from snapshotter.daemon.addresses import CONFIGURATION
from snapshotter.registry.base import ImageStore
from snapshotter.registry.reference import Reference

if TYPE_CHECKING:
    from snapshotter.daemon.config import Config
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
    from snapshotter.daemon.reach import credential_source, registry_hosts
    from snapshotter.registry.registries import Registries

    config, _ = configuration(config_path)
    return Registries(registry_hosts(config), credential_source(config, None))


class LateRegistries:
    """`registries`, made when the first one is opened: for places on this machine, never. Used in a with statement."""

    def __init__(self, config_path: Path | None) -> None:
        """Raises what `registries` does if `config_path` was named, and cannot be used."""
        self._config_path = config_path
        self._made = None if config_path is None else registries(config_path)

    def open(self, reference: Reference) -> ImageStore:
        """See `Registries.open`; and what `registries` raises."""
        if self._made is None:
            self._made = registries(self._config_path)
        return self._made.open(reference)

    def __enter__(self) -> LateRegistries:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End their connections."""
        if self._made is not None:
            self._made.close()


def configuration(config_path: Path | None) -> tuple[Config, Path | None]:
    """The configuration in `config_path`, in the default file, or the defaults; and the file that it is from.

    Raises:
        NotFoundError, InvalidError: the file that was named cannot be used.
    """
    from snapshotter.daemon.config import Config, load

    if config_path is None and CONFIGURATION.exists():
        config_path = CONFIGURATION
    return (Config() if config_path is None else load(config_path)), config_path
