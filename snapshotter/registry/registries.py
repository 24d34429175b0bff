"""Opens repositories, and shares connections, tokens and counters between those of one host."""

from __future__ import annotations

import threading
from collections.abc import Callable

from snapshotter.registry.client import RegistryStore
from snapshotter.registry.credentials import CredentialSource, DockerConfig
from snapshotter.registry.hosts import RegistryConfig
from snapshotter.registry.reference import Reference
from snapshotter.registry.session import RegistrySession
from snapshotter.registry.transport import Traffic, Transport


def default_config(host: str) -> RegistryConfig:
    """No settings: what suits `host` by its name alone."""
    return RegistryConfig()


class Registries:
    """All registries, as one process uses them. Safe for use by many threads; close it to close idle connections.

    `config` answers the settings of a host (as in references) and is asked once for each; `credentials` is asked again on each
    401 (None: docker's configuration file); `traffic` counts for all hosts.
    """

    def __init__(
        self,
        config: Callable[[str], RegistryConfig] = default_config,
        credentials: CredentialSource | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        self._config = config
        self._credentials = credentials if credentials is not None else DockerConfig.default()
        self.traffic = traffic if traffic is not None else Traffic()
        self._sessions: dict[str, RegistrySession] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Registries:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def open(self, reference: Reference) -> RegistryStore:
        """The repository of `reference`. Connects to nothing yet.

        Raises:
            InvalidError: the host's settings cannot be used (a certificate file).
        """
        return RegistryStore(self.session(reference.host), reference.repository)

    def session(self, host: str) -> RegistrySession:
        """What is shared by the repositories of `host`."""
        with self._lock:
            if host not in self._sessions:
                self._sessions[host] = RegistrySession(Transport(host, self._config(host), self.traffic), self._credentials)
            return self._sessions[host]

    def close(self) -> None:
        """Close idle connections. Stores that are still in use open new ones."""
        with self._lock:
            for session in self._sessions.values():
                session.close()
