"""Which registries may be contacted at all: an administrator's list, whatever an image says about where it is from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from snapshotter.registry.failures import DeniedError
from snapshotter.registry.reference import DEFAULT_HOST


@dataclass(frozen=True, slots=True)
class RegistryPolicy:
    """`allowed`: hosts as references and ``hosts.toml`` name them (``registry.example:5000``), ``*.example`` for all names
    below one, whatever the port unless the entry has one; None allows all."""

    allowed: Sequence[str] | None = None

    def check(self, host: str) -> None:
        """Refuse ``host[:port]`` unless it is allowed.

        Raises:
            DeniedError: it is not.
        """
        if self.allowed is not None and not any(_matches(pattern, host) for pattern in self.allowed):
            raise DeniedError(
                f"registry {host} is not among the allowed registries of this node's configuration "
                f"(policy.allowed_registries: {', '.join(self.allowed) or 'none'})"
            )


def _matches(pattern: str, host: str) -> bool:
    if pattern == DEFAULT_HOST and host == "registry-1.docker.io":
        return True
    name, colon, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    wanted, wanted_colon, wanted_port = pattern.rpartition(":") if not pattern.endswith("]") else (pattern, "", "")
    name, wanted = (name if colon else host), (wanted if wanted_colon else pattern)
    if wanted_colon and wanted_port != port:
        return False
    if wanted.startswith("*."):
        return name.lower().endswith(wanted[1:].lower())
    return name.lower() == wanted.lower()
