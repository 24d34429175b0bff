"""How a registry host is reached: what a person may configure per host, and what follows from the host's name alone."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import urlsplit

from snapshotter.registry.credentials import Credentials
from snapshotter.registry.reference import DEFAULT_HOST

DOCKER_HUB_ENDPOINT = "registry-1.docker.io"
"""Where docker.io's registry listens; docker.io itself serves a web page."""

API_PATH = "/v2"
"""Where the API is below a host (distribution specification)."""


@dataclass(frozen=True, slots=True)
class RegistryConfig:
    """Settings for one registry host; the defaults suit a public one.

    `endpoint`: the ``host[:port]`` to connect to, where it is not the one in references. `plain_http`: True for HTTP, False for
    HTTPS; None for HTTPS with, on this machine's own addresses only, HTTP if the server does not speak TLS. `ca_files` (PEM)
    are trusted besides the system's. `client_certificates`: PEM files of certificate and key (None: in the same file), shown to
    this host alone. `skip_verify` takes any certificate, of the hosts that this one redirects to as well. `credentials` win
    over every other source. `path`: where the API is. `headers` are sent with each request, to this host alone.

    Times in seconds: `connect_timeout`, `read_timeout` of silence while reading, and `answer_timeout`, in which an answer must
    be complete, with one second more for every 32 KiB of it: a server that sends one byte now and then is given up as well.
    """

    endpoint: str | None = None
    plain_http: bool | None = None
    ca_files: tuple[str, ...] = ()
    client_certificates: tuple[tuple[str, str | None], ...] = ()
    skip_verify: bool = False
    credentials: Credentials | None = field(default=None, repr=False)
    path: str = API_PATH
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    connect_timeout: float = 10.0
    read_timeout: float = 30.0
    answer_timeout: float = 60.0


@dataclass(frozen=True, slots=True)
class RegistryHost:
    """One of the places that may be asked for what references call `host`, and what it is good for.

    `mirror`: the ``host[:port]`` by which this mirror is known; None for the registry itself. `pull`: blobs, and manifests by
    digest; `resolve`: manifests by tag; `push`: it takes uploads (containerd's ``hosts.toml``, "capabilities").
    """

    config: RegistryConfig = RegistryConfig()
    mirror: str | None = None
    pull: bool = True
    resolve: bool = True
    push: bool = True


HostConfigs: TypeAlias = Callable[[str], Sequence[RegistryHost]]
"""Answers for a host, as references name it, whom to ask in which order. May be asked again at any time."""


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
