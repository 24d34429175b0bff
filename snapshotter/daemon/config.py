"""The daemon's configuration: a TOML file, every key with a default, checked whole before anything starts.

Unknown keys are errors: a misspelt one would otherwise be a setting that silently does nothing.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snapshotter.daemon.addresses import loopback
from snapshotter.errors import InvalidError, NotFoundError
from snapshotter.registry.credentials import Credentials
from snapshotter.registry.hosts import RegistryConfig

DEFAULT_PATH = Path("/etc/puzzlefs/config.toml")
LOG_LEVELS = ("debug", "info", "warning", "error")
MOUNT_WORKERS_MAX = 4
_SIZE = re.compile(r"([0-9]{1,6})\s*(|[KMGT]i?B)\Z")
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@dataclass(frozen=True, slots=True)
class Config:
    """What the daemon was told.

    `root`: all state, chunks and mounts. `address`: the Unix socket of the snapshots service. `cache_max_bytes`: cap of the
    chunk cache, None for none. `read_timeout`: seconds after which a container's read that waits for the network fails with
    EIO. `metrics_address`: a loopback ``HOST:PORT`` where metrics can be had besides the status socket, None for none.
    `mount_workers`: processes that serve mounts. `registries`: settings by registry host, as references name it.
    """

    root: Path = Path("/var/lib/puzzlefs")
    address: Path = Path("/run/puzzlefs/snapshotter.sock")
    log_level: str = "info"
    cache_max_bytes: int | None = None
    read_timeout: float = 60.0
    metrics_address: str | None = None
    mount_workers: int = field(default_factory=lambda: min(MOUNT_WORKERS_MAX, os.cpu_count() or 1))
    registries: Mapping[str, RegistryConfig] = field(default_factory=dict)


def load(path: Path) -> Config:
    """The configuration in the file `path`.

    Raises:
        NotFoundError: there is no such file.
        InvalidError: it cannot be read, is no TOML, or says something that cannot be meant; the message names file and key.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFoundError(f"configuration {path} does not exist") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidError(f"configuration {path} cannot be read: {error}") from None
    try:
        return parse(data)
    except InvalidError as error:
        raise InvalidError(f"configuration {path}: {error}") from None


def parse(data: Mapping[str, Any]) -> Config:
    """The configuration that a parsed TOML document describes.

    Raises:
        InvalidError: a key is unknown, or its value not of the kind that it must be.
    """
    values: dict[str, Any] = {}
    readers: dict[str, Callable[[str, Any], Any]] = {
        "root": _absolute,
        "address": _absolute,
        "log_level": _log_level,
        "cache.max_size": _size,
        "fetch.read_timeout": _seconds,
        "metrics.address": _loopback,
        "mount.workers": _workers,
    }
    names = {
        "cache.max_size": "cache_max_bytes",
        "fetch.read_timeout": "read_timeout",
        "metrics.address": "metrics_address",
        "mount.workers": "mount_workers",
    }
    registries = data.get("registry", {})
    flat = {key: value for key, value in data.items() if not isinstance(value, dict)}
    for section, table in data.items():
        if section != "registry" and isinstance(table, dict):
            flat |= {f"{section}.{key}": value for key, value in table.items()}
    for key, value in flat.items():
        if key not in readers:
            raise InvalidError(f"unknown key {key}; known are {', '.join(sorted(readers))} and [registry.HOST]")
        values[names.get(key, key)] = readers[key](key, value)
    if not isinstance(registries, dict):
        raise InvalidError("registry must be a table: [registry.HOST]")
    values["registries"] = {host: _registry(host, table) for host, table in registries.items()}
    return Config(**values)


def _registry(host: str, table: Any) -> RegistryConfig:
    prefix = f'registry."{host}"'
    if not isinstance(table, dict):
        raise InvalidError(f"{prefix} must be a table")
    known: dict[str, Callable[[str, Any], Any]] = {
        "endpoint": _text,
        "plain_http": _flag,
        "ca_file": _text,
        "client_cert": _text,
        "client_key": _text,
        "skip_verify": _flag,
        "username": _text,
        "password": _text,
    }
    read: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise InvalidError(f"unknown key {prefix}.{key}; known are {', '.join(sorted(known))}")
        read[key] = known[key](f"{prefix}.{key}", value)
    for one, other in (("client_cert", "client_key"), ("username", "password")):
        if (one in read) != (other in read):
            raise InvalidError(f"{prefix}: {one} and {other} go together")
    certificate = (read["client_cert"], read["client_key"]) if "client_cert" in read else None
    credentials = Credentials(read["username"], read["password"]) if "username" in read else None
    plain = {key: read[key] for key in ("endpoint", "plain_http", "ca_file", "skip_verify") if key in read}
    return RegistryConfig(**plain, client_certificate=certificate, credentials=credentials)


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidError(f"{key} must be a string that is not empty")
    return value


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidError(f"{key} must be true or false")
    return value


def _absolute(key: str, value: Any) -> Path:
    path = Path(_text(key, value))
    if not path.is_absolute():
        raise InvalidError(f"{key} must be an absolute path, not {value!r}")
    return path


def _log_level(key: str, value: Any) -> str:
    if value not in LOG_LEVELS:
        raise InvalidError(f"{key} must be one of {', '.join(LOG_LEVELS)}, not {value!r}")
    return str(value)


def _size(key: str, value: Any) -> int | None:
    match = _SIZE.match(str(value))
    if isinstance(value, bool) or match is None:
        raise InvalidError(f'{key} must be a size such as "20GiB" (0: no limit), not {value!r}')
    return int(match[1]) * _UNITS[match[2]] or None


def _loopback(key: str, value: Any) -> str:
    text = _text(key, value)
    try:
        loopback(text)
    except InvalidError as error:
        raise InvalidError(f"{key}: {error}") from None
    return text


def _seconds(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 3600:
        raise InvalidError(f"{key} must be a number of seconds above 0 and up to 3600, not {value!r}")
    return float(value)


def _workers(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 64:
        raise InvalidError(f"{key} must be a number from 1 to 64, not {value!r}")
    return value
