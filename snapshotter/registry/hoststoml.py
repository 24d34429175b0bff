"""containerd's ``hosts.toml``: mirrors of a registry, and how each is reached (containerd's docs/hosts.md).

The directory (``config_path``) has one directory a host, ``registry.example_5000_`` or ``registry.example:5000``, else
``_default``; in it ``hosts.toml``, or docker's certificate files where there is none. What is read here is an administrator's;
it is read anew each time, as by containerd.
"""

from __future__ import annotations

import logging
import posixpath
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from snapshotter.errors import InvalidError
from snapshotter.registry.hosts import API_PATH, DOCKER_HUB_ENDPOINT, RegistryConfig, RegistryHost
from snapshotter.registry.reference import DEFAULT_HOST

DEFAULT_DIRECTORY = Path("/etc/containerd/certs.d")
FILE_MAX = 1 << 20
"""Largest ``hosts.toml`` that is read, in bytes."""
MIRRORS_MAX = 16
"""Most mirrors of one host that are asked."""

_log = logging.getLogger(__name__)
_CAPABILITIES = frozenset({"pull", "resolve", "push"})
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0}


@dataclass(frozen=True, slots=True)
class HostsDirectory:
    """The directory `path`; `base` is what all hosts share (time-outs)."""

    path: Path
    base: RegistryConfig = field(default_factory=RegistryConfig)

    def hosts(self, host: str) -> Sequence[RegistryHost]:
        """Whom to ask for `host`, in their order: mirrors, and at last the registry itself.

        A file that is wrong is logged and taken for an absent one, as by containerd: what it pulls, we can read.
        """
        directory = self._directory(host)
        if directory is None:
            return [RegistryHost(self.base)]
        file = directory / "hosts.toml"
        try:
            with open(file, "rb") as content:
                data = content.read(FILE_MAX + 1)
            if len(data) > FILE_MAX:
                raise InvalidError(f"it is larger than {FILE_MAX} bytes")
            if data.strip():
                return parse(tomllib.loads(data.decode()), host, directory, self.base)
        except FileNotFoundError:
            pass
        except (InvalidError, ValueError, OSError) as error:
            _log.error("%s is not used: %s", file, error)
        return [RegistryHost(_certificates(directory, self.base))]

    def ports(self, name: str) -> Iterator[str]:
        """Those hosts with a directory here whose name without the port is `name`, as references would have them."""
        try:
            found = sorted(path.name for path in self.path.iterdir())
        except OSError:
            return
        for directory in found:
            head, _, port = directory.removesuffix("_").rpartition("_" if directory.endswith("_") else ":")
            if head == name and port.isdigit():
                yield f"{name}:{port}"

    def _directory(self, host: str) -> Path | None:
        # A host is part of a path here, and comes from a hostile image's label: the grammar of references has no slash and no
        # leading dot, and this holds where somebody asks who did not parse one.
        if "/" in host or host.startswith(".") or not host:
            return None
        name, colon, port = host.rpartition(":")
        names = ([f"{name}_{port}_"] if colon and name else []) + [host, "_default"]
        return next((self.path / each for each in names if (self.path / each).is_dir()), None)


def parse(data: Mapping[str, Any], host: str, directory: Path, base: RegistryConfig) -> Sequence[RegistryHost]:
    """What the parsed ``hosts.toml`` of `directory` says for `host`.

    Raises:
        InvalidError: a value is not of the kind that it must be.
    """
    tables = data.get("host", {})
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise InvalidError('host must hold tables: [host."https://mirror.example"]')
    if len(tables) > MIRRORS_MAX:
        raise InvalidError(f"{len(tables)} hosts, at most {MIRRORS_MAX} are asked")
    mirrors = [_host(url, table, directory, base) for url, table in tables.items()]
    own = DOCKER_HUB_ENDPOINT if host == DEFAULT_HOST else host
    last = _host(str(data.get("server") or ""), data, directory, base)
    if last.mirror in (own, None):
        last = replace(last, mirror=None)
    return [*mirrors, last]


def _host(url: str, table: Mapping[str, Any], directory: Path, base: RegistryConfig) -> RegistryHost:
    config, authority = base, None
    if url:
        parts = urlsplit(url if "://" in url else f"https://{url}")
        if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
            raise InvalidError(f"{url[:200]!r} is no http or https URL of a host")
        authority = parts.netloc
        path = posixpath.normpath(parts.path) if parts.path.strip("/") else ""
        if not path.endswith(API_PATH) and table.get("override_path") is not True:
            path += API_PATH
        config = replace(config, endpoint=authority, plain_http=parts.scheme == "http", path=path)
    capabilities = frozenset(_texts(table.get("capabilities"), "capabilities")) or _CAPABILITIES
    if not capabilities <= _CAPABILITIES:
        raise InvalidError(f"unknown capabilities {', '.join(sorted(capabilities - _CAPABILITIES))}")
    skip = table.get("skip_verify", config.skip_verify)
    if not isinstance(skip, bool):
        raise InvalidError("skip_verify must be true or false")
    config = replace(
        config,
        ca_files=tuple(str(directory / each) for each in _texts(table.get("ca"), "ca")) or config.ca_files,
        client_certificates=tuple(_pairs(table.get("client"), directory)) or config.client_certificates,
        skip_verify=skip,
        headers=tuple(_headers(table.get("header"))) or config.headers,
        connect_timeout=_duration(table.get("dial_timeout"), config.connect_timeout),
    )
    return RegistryHost(config, authority, *(each in capabilities for each in ("pull", "resolve", "push")))


def _certificates(directory: Path, base: RegistryConfig) -> RegistryConfig:
    """docker's layout: ``*.crt`` are authorities, ``*.cert`` and ``*.key`` of the same name are a client's."""
    pairs = []
    for certificate in sorted(directory.glob("*.cert")):
        key = certificate.with_suffix(".key")
        pairs.append((str(certificate), str(key) if key.exists() else None))
    authorities = tuple(str(path) for path in sorted(directory.glob("*.crt")))
    return replace(base, ca_files=authorities or base.ca_files, client_certificates=tuple(pairs) or base.client_certificates)


def _texts(value: object, key: str) -> list[str]:
    listed = [value] if isinstance(value, str) else value if value is not None else []
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise InvalidError(f"{key} must be a string or a list of strings")
    return listed


def _pairs(value: object, directory: Path) -> Iterator[tuple[str, str | None]]:
    """A file with both, several of them, or pairs of files."""
    for each in [value] if isinstance(value, str) else value if isinstance(value, list) else []:
        if isinstance(each, str):
            yield str(directory / each), None
        elif isinstance(each, list) and len(each) == 2 and all(isinstance(part, str) for part in each):
            yield str(directory / each[0]), str(directory / each[1]) if each[1] else None
        else:
            raise InvalidError("client must be a file, or a list of files or of pairs of them")


def _headers(value: object) -> Iterator[tuple[str, str]]:
    if value is None:
        return
    if not isinstance(value, dict):
        raise InvalidError("header must be a table")
    for key, texts in value.items():
        yield str(key), ", ".join(_texts(texts, f"header {key}"))


def _duration(value: object, default: float) -> float:
    """Go's notation of a single unit, as the documentation of containerd has it: ``3s``."""
    if value is None or value == "":
        return default
    text = str(value)
    unit = next((unit for unit in ("ms", "s", "m") if text.endswith(unit)), "")
    try:
        seconds = float(text.removesuffix(unit)) * _UNITS[unit]
    except (ValueError, KeyError):
        raise InvalidError(f'dial_timeout must be a time such as "3s", not {text[:40]!r}') from None
    if not 0 < seconds <= 3600:
        raise InvalidError(f"dial_timeout must be above 0 and up to an hour, not {text[:40]!r}")
    return seconds
