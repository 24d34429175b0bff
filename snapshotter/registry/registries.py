"""Opens repositories, and shares connections, tokens and counters between those of one host."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence

from snapshotter import userns
from snapshotter.errors import PuzzlefsError
from snapshotter.registry.client import RegistryStore
from snapshotter.registry.credentials import CredentialSource, login_files
from snapshotter.registry.failures import DeniedError
from snapshotter.registry.hosts import HostConfigs, RegistryHost, endpoint
from snapshotter.registry.policy import RegistryPolicy
from snapshotter.registry.reference import Reference
from snapshotter.registry.session import RegistrySession
from snapshotter.registry.transport import Traffic, Transport
from snapshotter.registry.watchdog import Watchdog

_log = logging.getLogger(__name__)


def default_hosts(host: str) -> Sequence[RegistryHost]:
    """No settings: what suits `host` by its name alone."""
    return [RegistryHost()]


class Registries:
    """All registries, as one process uses them. Safe for use by many threads; close it to close idle connections.

    `hosts` answers whom to ask for a host (as in references), and how; `credentials` is asked again on each 401 (None: what
    ``docker login`` and ``podman login`` keep); `traffic` counts for all hosts; `policy` says which hosts may be asked at all:
    this is where references become hosts, so here and nowhere else it is checked.
    """

    def __init__(
        self,
        hosts: HostConfigs = default_hosts,
        credentials: CredentialSource | None = None,
        traffic: Traffic | None = None,
        policy: RegistryPolicy | None = None,
    ) -> None:
        self._hosts = hosts
        self._credentials = credentials if credentials is not None else login_files(os.environ, root=userns.is_root())
        self.traffic = traffic if traffic is not None else Traffic()
        self._policy = policy if policy is not None else RegistryPolicy()
        self._watchdog = Watchdog()
        self._sessions: dict[tuple[str, RegistryHost], RegistrySession] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Registries:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def open(self, reference: Reference) -> RegistryStore:
        """The repository of `reference` at the registry itself, for all that `ImageStore` can do. Connects to nothing yet.

        Raises:
            InvalidError: the host's settings cannot be used (a certificate file), or it is not allowed.
        """
        own = [host for host in self._hosts(reference.host) if host.mirror is None] or [RegistryHost()]
        return self._store(reference, own[-1])

    def readers(self, reference: Reference, *, resolve: bool = False) -> Sequence[RegistryStore]:
        """The repository of `reference` at everyone who may be asked for its content, mirrors first, best first.

        `resolve`: who may be asked what a tag means, instead. Connects to nothing yet.

        Raises:
            InvalidError: settings cannot be used, or nobody may be asked.
        """
        stores: list[RegistryStore] = []
        refused: PuzzlefsError | None = None
        for host in self._hosts(reference.host):
            if not (host.resolve if resolve else host.pull):
                continue
            try:
                stores.append(self._store(reference, host))
            except DeniedError as error:
                _log.warning("%s", error)
                refused = error
        if not stores:
            raise refused or DeniedError(
                f"no host may be asked for {reference.name}: the hosts.toml of {reference.host} gives none the capability "
                f"{'resolve' if resolve else 'pull'}"
            )
        return stores

    def _store(self, reference: Reference, host: RegistryHost) -> RegistryStore:
        return RegistryStore(self._session(reference.host, host), reference.repository)

    def _session(self, name: str, host: RegistryHost) -> RegistrySession:
        """What is shared by the repositories of `host`, which is asked for those that references place at `name`."""
        self._policy.check(name)
        self._policy.check(host.mirror or endpoint(name, host.config))
        with self._lock:
            session = self._sessions.get((name, host))
            if session is None:
                shown, mirror_of = (name, None) if host.mirror is None else (host.mirror, name)
                transport = Transport(shown, host.config, self.traffic, mirror_of=mirror_of, watchdog=self._watchdog)
                session = self._sessions[name, host] = RegistrySession(transport, self._credentials)
            return session

    def close(self) -> None:
        """Close idle connections. Stores that are still in use open new ones."""
        with self._lock:
            for session in self._sessions.values():
                session.close()
