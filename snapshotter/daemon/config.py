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

from snapshotter.chunkstore.reserve import RESERVE, Cap
from snapshotter.daemon import peering, stores
from snapshotter.daemon.addresses import CONTAINERD, SNAPSHOTS, loopback
from snapshotter.daemon.peering import PeersConfig
from snapshotter.daemon.settings import absolute, check_keys, flag, rate, seconds, size, table_of, text, texts, whole
from snapshotter.daemon.stores import StoreConfig
from snapshotter.errors import InvalidError, NotFoundError
from snapshotter.format import fsverity
from snapshotter.registry.credentials import Credentials
from snapshotter.registry.hosts import RegistryConfig
from snapshotter.registry.hoststoml import DEFAULT_DIRECTORY

LOG_LEVELS = ("debug", "info", "warning", "error")
MOUNT_WORKERS_MAX = 4
_PERCENT = re.compile(r"([0-9]{1,3})\s*%\Z")


@dataclass(frozen=True, slots=True)
class Config:
    """What the daemon was told.

    `root`: all state, chunks and mounts. `address`: the Unix socket of the snapshots service. `cache_max_bytes`: cap of
    the chunk cache, None for none; `cache_reserve` is the part of it that is kept for what containers have read recently.
    `read_timeout`: seconds after which a container's read that waits for the network fails with EIO. `metrics_address`: a
    loopback ``HOST:PORT`` where metrics can be had besides the status socket, None for none. `record_starts`: whether
    what first starts read is recorded, for the next pull of the same layers. `background`: whether the rest of images is
    fetched unasked, after `background_quiet` seconds in which no read had to wait, with `background_rate` bytes a second
    in each worker. `mount_workers`: processes that serve mounts. `keep_awake`: whether they may keep idle processors from
    sleeping for moments (`mount.vigil`). `fs_verity`: whether the kernel's is to check this node's files. `registries`:
    settings by registry host, as references name it. `containerd_address`: containerd's own socket. `hosts_directory`:
    where ``hosts.toml`` files are. `remap_ids`: whether containerd leaves it to us to show layers to containers in user
    namespaces. `stores`: places that are asked before registries. `allowed_registries`: None for all.
    `credential_files`: in docker's or podman's form, besides the usual ones. `kubelet_providers`: the kubelet's
    credential provider configuration and the directory of its programs. `cri_image_service`: whether Kubernetes' image
    service is served as well, to hear the credentials of pulls. `peers`: other nodes, whose caches are asked or who may
    ask for this one's.
    """

    root: Path = Path("/var/lib/puzzlefs")
    address: Path = SNAPSHOTS
    log_level: str = "info"
    cache_max_bytes: int | None = None
    cache_reserve: float = RESERVE
    read_timeout: float = 60.0
    metrics_address: str | None = None
    record_starts: bool = False
    background: bool = True
    background_rate: int = 8_000_000
    background_quiet: float = 60.0
    layer_store_mountpoint: Path | None = None
    mount_workers: int = field(default_factory=lambda: min(MOUNT_WORKERS_MAX, os.cpu_count() or 1))
    keep_awake: bool = True
    fs_verity: fsverity.Mode = fsverity.Mode.AUTO
    registries: Mapping[str, RegistryConfig] = field(default_factory=dict)
    containerd_address: Path = CONTAINERD
    hosts_directory: Path = DEFAULT_DIRECTORY
    remap_ids: bool = False
    stores: tuple[StoreConfig, ...] = ()
    allowed_registries: tuple[str, ...] | None = None
    credential_files: tuple[Path, ...] = ()
    kubelet_providers: tuple[Path, Path] | None = None
    cri_image_service: bool = False
    peers: PeersConfig = field(default_factory=PeersConfig)

    @property
    def cache_cap(self) -> Cap | None:
        """The bounds of the chunk cache, if it has any."""
        return None if self.cache_max_bytes is None else Cap(self.cache_max_bytes, self.cache_reserve)


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
        "root": absolute,
        "address": absolute,
        "log_level": _log_level,
        "cache.max_size": size,
        "cache.reserve": _percent,
        "fetch.read_timeout": seconds,
        "profile": _profile,
        "background.enabled": flag,
        "background.rate": rate,
        "background.quiet": seconds,
        "metrics.address": _loopback,
        "mount.workers": _workers,
        "mount.keep_awake": flag,
        "containerd.address": absolute,
        "containerd.config_path": absolute,
        "containerd.remap_ids": flag,
        "policy.allowed_registries": texts,
        "credentials.files": _absolutes,
        "credentials.kubelet_config": absolute,
        "credentials.kubelet_bin_dir": absolute,
        "cri.image_service": flag,
        "integrity.fs_verity": _fs_verity,
        "layer_store.mountpoint": absolute,
    }
    names = {
        "cache.max_size": "cache_max_bytes",
        "cache.reserve": "cache_reserve",
        "fetch.read_timeout": "read_timeout",
        "profile": "record_starts",
        "background.enabled": "background",
        "background.rate": "background_rate",
        "background.quiet": "background_quiet",
        "metrics.address": "metrics_address",
        "mount.workers": "mount_workers",
        "mount.keep_awake": "keep_awake",
        "containerd.address": "containerd_address",
        "containerd.config_path": "hosts_directory",
        "containerd.remap_ids": "remap_ids",
        "policy.allowed_registries": "allowed_registries",
        "credentials.files": "credential_files",
        "cri.image_service": "cri_image_service",
        "integrity.fs_verity": "fs_verity",
        "layer_store.mountpoint": "layer_store_mountpoint",
    }
    registries = data.get("registry", {})
    flat = {key: value for key, value in data.items() if not isinstance(value, dict) and key not in ("store", "peers")}
    for section, table in data.items():
        if section not in ("registry", "peers") and isinstance(table, dict):
            flat |= {f"{section}.{key}": value for key, value in table.items()}
    for key, value in flat.items():
        if key not in readers:
            known = ", ".join(sorted(readers))
            raise InvalidError(f"unknown key {key}; known are {known}, [[store]], [peers] and [registry.HOST]")
        values[names.get(key, key)] = readers[key](key, value)
    if not isinstance(registries, dict):
        raise InvalidError("registry must be a table: [registry.HOST]")
    values["registries"] = {host: _registry(host, table) for host, table in registries.items()}
    values["peers"] = peering.parse(data.get("peers", {}))
    values["stores"] = tuple(stores.parse(data.get("store", [])))
    providers = [values.pop(f"credentials.{key}", None) for key in ("kubelet_config", "kubelet_bin_dir")]
    if providers.count(None) == 1:
        raise InvalidError("credentials.kubelet_config and credentials.kubelet_bin_dir go together")
    if None not in providers:
        values["kubelet_providers"] = tuple(providers)
    return Config(**values)


def _registry(host: str, table: Any) -> RegistryConfig:
    prefix = f'registry."{host}"'
    known: dict[str, Callable[[str, Any], Any]] = {
        "endpoint": text,
        "plain_http": flag,
        "ca_file": text,
        "client_cert": text,
        "client_key": text,
        "skip_verify": flag,
        "username": text,
        "password": text,
    }
    read = check_keys(prefix, table_of(prefix, table), known)
    for one, other in (("client_cert", "client_key"), ("username", "password")):
        if (one in read) != (other in read):
            raise InvalidError(f"{prefix}: {one} and {other} go together")
    scheme, slashes, rest = read.get("endpoint", "").partition("://")
    if slashes:
        if scheme not in ("http", "https") or not rest.strip("/") or "/" in rest.rstrip("/"):
            raise InvalidError(f"{prefix}.endpoint must be HOST[:PORT], or that behind http:// or https://")
        read = {"plain_http": scheme == "http", **read, "endpoint": rest.rstrip("/")}
    return RegistryConfig(
        ca_files=(read["ca_file"],) if "ca_file" in read else (),
        client_certificates=((read["client_cert"], read["client_key"]),) if "client_cert" in read else (),
        credentials=Credentials(read["username"], read["password"]) if "username" in read else None,
        **{key: read[key] for key in ("endpoint", "plain_http", "skip_verify") if key in read},
    )


def _log_level(key: str, value: Any) -> str:
    if value not in LOG_LEVELS:
        raise InvalidError(f"{key} must be one of {', '.join(LOG_LEVELS)}, not {value!r}")
    return str(value)


def _fs_verity(key: str, value: Any) -> fsverity.Mode:
    if not isinstance(value, str) or value not in list(fsverity.Mode):
        raise InvalidError(f"{key} must be one of {', '.join(fsverity.Mode)}, not {value!r}")
    return fsverity.Mode(value)


def _profile(key: str, value: Any) -> bool:
    if value not in ("record", "off"):
        raise InvalidError(f'{key} must be "record" or "off", not {value!r}')
    return bool(value == "record")


def _percent(key: str, value: Any) -> float:
    match = _PERCENT.match(str(value))
    if match is None or int(match[1]) > 100:
        raise InvalidError(f'{key} must be a part of the whole such as "25%", not {value!r}')
    return int(match[1]) / 100


def _absolutes(key: str, value: Any) -> tuple[Path, ...]:
    return tuple(absolute(key, each) for each in texts(key, value))


def _loopback(key: str, value: Any) -> str:
    address = text(key, value)
    try:
        loopback(address)
    except InvalidError as error:
        raise InvalidError(f"{key}: {error}") from None
    return address


def _workers(key: str, value: Any) -> int:
    return whole(key, value, 1, 64)
