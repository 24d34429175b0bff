"""How a registry host is reached: what a person may configure per host, and what follows from the host's name alone.

A seam: containerd's ``hosts.toml`` (mirrors, ``ns=``) becomes another source of `RegistryConfig` and a list of endpoints to
ask one after the other; nothing above has to know.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from snapshotter.registry.credentials import Credentials
from snapshotter.registry.reference import DEFAULT_HOST

DOCKER_HUB_ENDPOINT = "registry-1.docker.io"
"""Where docker.io's registry listens; docker.io itself serves a web page."""


@dataclass(frozen=True, slots=True)
class RegistryConfig:
    """Settings for one registry host; the defaults suit a public one.

    `endpoint`: the ``host[:port]`` to connect to, where it is not the one in references. `plain_http`: True for HTTP, False for
    HTTPS; None for HTTPS with, on this machine's own addresses only, HTTP if the server does not speak TLS. `ca_file` (PEM) is
    trusted besides the system's. `client_certificate`: PEM files of certificate and key, shown to this host alone.
    `skip_verify` takes any certificate, of the hosts that this one redirects to as well. `credentials` win over every other
    source. Timeouts in seconds: to connect, and of silence while reading.
    """

    endpoint: str | None = None
    plain_http: bool | None = None
    ca_file: str | None = None
    client_certificate: tuple[str, str] | None = None
    skip_verify: bool = False
    credentials: Credentials | None = field(default=None, repr=False)
    connect_timeout: float = 10.0
    read_timeout: float = 30.0


def endpoint(host: str, config: RegistryConfig) -> str:
    """The ``host[:port]`` to connect to for references of `host`."""
    if config.endpoint is not None:
        return config.endpoint
    return DOCKER_HUB_ENDPOINT if host == DEFAULT_HOST else host


def is_loopback(authority: str) -> bool:
    """Whether ``host[:port]`` is this machine: localhost, 127.0.0.0/8 or ::1. Names are not looked up."""
    try:
        name = urlsplit(f"//{authority}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
