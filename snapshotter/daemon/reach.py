"""What the configuration lets one process reach: registries through their mirrors, stores, containerd's content.

The daemon and each of its workers make one from the same file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType

from snapshotter import userns
from snapshotter.daemon.config import Config
from snapshotter.daemon.sources import Sources
from snapshotter.daemon.stores import open_store
from snapshotter.registry.credentials import CredentialSource, DockerConfig, FirstOf, login_files
from snapshotter.registry.hosts import HostConfigs, RegistryConfig, RegistryHost
from snapshotter.registry.hoststoml import HostsDirectory
from snapshotter.registry.kubelet import KubeletProviders
from snapshotter.registry.policy import RegistryPolicy
from snapshotter.registry.registries import Registries

SILENCE_SHARE = 1 / 3
ANSWER_SHARE = 1 / 2
"""Of a read's time, what one request may take: silent, and as a whole. The rest is for the next source, or another try."""
CONNECT_TIMEOUT = 5.0


def registry_hosts(config: Config) -> HostConfigs:
    """Whom to ask for a registry host: what ``hosts.toml`` says, and in the registry's own place what the configuration says.

    A table of the configuration with an ``endpoint`` of its own stands alone.
    """
    directory = HostsDirectory(config.hosts_directory, bounded(RegistryConfig(), config.read_timeout))

    def hosts(host: str) -> Sequence[RegistryHost]:
        own = config.registries.get(host)
        if own is None:
            return directory.hosts(host)
        own = bounded(own, config.read_timeout)
        mirrors = [] if own.endpoint is not None else directory.hosts(host)[:-1]
        return [*mirrors, RegistryHost(own)]

    return hosts


def bounded(config: RegistryConfig, read_timeout: float) -> RegistryConfig:
    """`config` with times that fit into a read of `read_timeout` seconds."""
    return replace(
        config,
        connect_timeout=min(CONNECT_TIMEOUT, read_timeout * SILENCE_SHARE),
        read_timeout=min(config.read_timeout, read_timeout * SILENCE_SHARE),
        answer_timeout=min(config.answer_timeout, read_timeout * ANSWER_SHARE),
    )


def credential_source(config: Config, told: CredentialSource | None) -> CredentialSource:
    """Who pulls: what the daemon was `told` with a pull, then files, then what ``docker login`` keeps, then the kubelet's
    programs, which take longest. What the configuration says of a registry comes before all of them (`RegistryConfig`)."""
    sources: list[CredentialSource] = [told] if told is not None else []
    sources += [DockerConfig(path) for path in config.credential_files]
    sources.append(login_files(os.environ, root=userns.is_root()))
    if config.kubelet_providers is not None:
        sources.append(KubeletProviders(*config.kubelet_providers))
    return FirstOf(sources)


class Reach:
    """Registries and sources as `config` has them. Close it, or use it as a context manager.

    `told` knows the credentials that the daemon was told with pulls.
    """

    def __init__(self, config: Config, told: CredentialSource | None = None) -> None:
        """Connects to nothing yet.

        Raises:
            InvalidError, UnsupportedError: a store cannot be used.
        """
        self._hosts = HostsDirectory(config.hosts_directory)
        self._configured = tuple(config.registries)
        self.registries = Registries(
            registry_hosts(config), credential_source(config, told), policy=RegistryPolicy(config.allowed_registries)
        )
        stores = [open_store(store, config.read_timeout * ANSWER_SHARE) for store in config.stores]
        self.sources = Sources(self.registries, stores, config.containerd_address)

    def __enter__(self) -> Reach:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def ports(self, name: str) -> list[str]:
        """The registry hosts that the configuration or ``hosts.toml`` has settings for, with their ports, for a host's name."""
        own = [host for host in self._configured if host.rpartition(":")[0] == name]
        return [*own, *self._hosts.ports(name)]

    def close(self) -> None:
        """Close connections."""
        self.sources.close()
        self.registries.close()
