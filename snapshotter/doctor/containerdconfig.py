"""containerd's configuration as it takes effect: files, imports and the versions of the format, brought to one form.

Rules are those of containerd's ``server/config/config.go`` (``LoadConfig``, ``mergeConfig``) and of its CRI plugin's
``configMigration``. ``containerd config dump`` gives the same with all defaults filled in; `effective` understands both.
"""

from __future__ import annotations

import glob
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from snapshotter.errors import InvalidError, NotFoundError

FILES_MAX = 64
"""Most files that are read for one configuration."""
FILE_MAX = 1 << 20
"""Largest file that is read, in bytes."""

CRI_V1 = "io.containerd.grpc.v1.cri"
CRI_IMAGES = "io.containerd.cri.v1.images"
CRI_RUNTIME = "io.containerd.cri.v1.runtime"
TRANSFER = "io.containerd.transfer.v1.local"
DIFF_SERVICE = "io.containerd.service.v1.diff-service"

Read = Callable[[str], bytes]
Glob = Callable[[str], list[str]]


@dataclass(frozen=True, slots=True)
class ProxyPlugin:
    """A ``[proxy_plugins.NAME]``: `type` is snapshot, content or diff, `address` the socket of who serves it."""

    name: str
    type: str
    address: str
    exports: Mapping[str, str]
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unpack:
    """One ``unpack_config`` of the transfer service."""

    platform: str
    snapshotter: str
    differ: str


@dataclass(frozen=True, slots=True)
class Effective:
    """What of containerd's configuration concerns a snapshotter; None where nothing is set.

    `version`: of the format. `cri_enabled`: the CRI plugin is not among the disabled ones. `cri_snapshotter` and
    `annotations_disabled`: of CRI's images; `local_pull`: CRI pulls by itself instead of by the transfer service;
    `runtime_snapshotters`: those that a runtime has of its own. `lost_snapshotter`: CRI's snapshotter stands in a place that
    containerd 2.x does not take over. `unpack`: of the transfer service. `differs`: the order in which differs are tried.
    """

    version: int
    proxies: tuple[ProxyPlugin, ...] = ()
    cri_enabled: bool = True
    cri_snapshotter: str | None = None
    annotations_disabled: bool | None = None
    local_pull: bool | None = None
    runtime_snapshotters: Mapping[str, str] | None = None
    lost_snapshotter: bool = False
    unpack: tuple[Unpack, ...] | None = None
    differs: tuple[str, ...] | None = None


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(FILE_MAX + 1)


def load(path: str, *, merge_plugins: bool, read: Read = _read_file, find: Glob = glob.glob) -> dict[str, Any]:
    """The file `path` with its ``imports`` merged into it, as containerd merges them.

    `merge_plugins`: sections of plugins are merged key by key (containerd 2.x); 1.x replaces a plugin's whole section.

    Raises:
        NotFoundError: there is no such file.
        InvalidError: one of the files cannot be read, or is no TOML.
    """
    merged: dict[str, Any] = {}
    pending, loaded = [path], set[str]()
    while pending:
        current = pending.pop(0)
        if current in loaded:
            continue
        if len(loaded) == FILES_MAX:
            raise InvalidError(f"{path} imports more than {FILES_MAX} files")
        loaded.add(current)
        data = _parse(current, read)
        _merge_files(merged, data, merge_plugins=merge_plugins)
        pending += _imports(current, data.get("imports"), find)
    return merged


def parse(text: str) -> dict[str, Any]:
    """What ``containerd config dump`` printed.

    Raises:
        InvalidError: it is no TOML.
    """
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidError(f"what containerd printed as its configuration is no TOML: {error}") from None


def effective(raw: Mapping[str, Any], containerd: tuple[int, int] | None = None) -> Effective:
    """What `raw` means for a containerd of version `containerd` (None: what its own format is for)."""
    stated = raw.get("version")
    version = stated if isinstance(stated, int) else 1
    plugins = _table(raw.get("plugins"))
    old, images = _table(plugins.get(CRI_V1 if version > 1 else "cri")), _table(plugins.get(CRI_IMAGES))
    old_containerd = _table(old.get("containerd"))
    runs_new = containerd is not None and containerd >= (2, 0)
    # migrateConfig of containerd 2.x leaves everything behind if the file has no table of runtimes.
    lost = runs_new and "snapshotter" in old_containerd and "runtimes" not in old_containerd and "snapshotter" not in images
    own = {} if lost else old_containerd
    runtimes = {
        **_table(own.get("runtimes")),
        **_table(_table(_table(plugins.get(CRI_RUNTIME)).get("containerd")).get("runtimes")),
        **_table(images.get("runtime_platforms")),
    }
    disabled = raw.get("disabled_plugins")
    cri = {"cri", CRI_V1, CRI_IMAGES}
    return Effective(
        version=version,
        proxies=tuple(_proxy(name, _table(value)) for name, value in _table(raw.get("proxy_plugins")).items()),
        cri_enabled=not (isinstance(disabled, list) and cri & {item for item in disabled if isinstance(item, str)}),
        cri_snapshotter=_text(images.get("snapshotter")) or _text(own.get("snapshotter")),
        annotations_disabled=_flag(images.get("disable_snapshot_annotations"), own.get("disable_snapshot_annotations")),
        local_pull=_flag(images.get("use_local_image_pull")),
        runtime_snapshotters={
            name: snapshotter for name, value in runtimes.items() if (snapshotter := _text(_table(value).get("snapshotter")))
        },
        lost_snapshotter=lost,
        unpack=_unpack(_table(plugins.get(TRANSFER)).get("unpack_config")),
        differs=_texts(_table(plugins.get(DIFF_SERVICE)).get("default")),
    )


def _parse(path: str, read: Read) -> dict[str, Any]:
    try:
        data = read(path)
        if len(data) > FILE_MAX:
            raise InvalidError(f"{path} is larger than {FILE_MAX} bytes")
        return tomllib.loads(data.decode())
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _imports(parent: str, imports: object, find: Glob) -> list[str]:
    paths: list[str] = []
    for item in imports if isinstance(imports, list) else []:
        path = os.path.normpath(os.path.join(os.path.dirname(parent), str(item)))
        paths += sorted(find(path)) if "*" in path else [path]
    return paths


def _merge_files(into: dict[str, Any], data: Mapping[str, Any], *, merge_plugins: bool) -> None:
    """``mergeConfig``: later files win, lists are appended to, proxy plugins are replaced one by one."""
    for key, value in data.items():
        if key == "proxy_plugins" or (key == "plugins" and not merge_plugins):
            into[key] = {**_table(into.get(key)), **_table(value)}
        elif key == "version" and key in into:
            continue
        else:
            into[key] = _merged(into[key], value) if key in into else value


def _merged(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _merged(old[key], value) if key in old else value for key, value in new.items()}}
    if isinstance(old, list) and isinstance(new, list):
        return old + [item for item in new if item not in old]
    return new


def _proxy(name: str, table: Mapping[str, Any]) -> ProxyPlugin:
    exports = {key: str(value) for key, value in _table(table.get("exports")).items()}
    capable = table.get("capabilities")
    capabilities = tuple(map(str, capable)) if isinstance(capable, list) else ()
    return ProxyPlugin(name, str(table.get("type", "")), str(table.get("address", "")), exports, capabilities)


def _unpack(value: object) -> tuple[Unpack, ...] | None:
    if not isinstance(value, list):
        return None
    entries = (_table(item) for item in value)
    return tuple(Unpack(*(str(entry.get(key, "")) for key in ("platform", "snapshotter", "differ"))) for entry in entries)


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _texts(value: object) -> tuple[str, ...] | None:
    return tuple(str(item) for item in value) if isinstance(value, list) else None


def _flag(*values: object) -> bool | None:
    return next((value for value in values if isinstance(value, bool)), None)
