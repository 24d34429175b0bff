"""podman on this node: its version, and whether its storage looks into the layer store; where there is to be one."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from snapshotter import userns
from snapshotter.doctor.finding import Finding, fail, ok, warn
from snapshotter.doctor.machine import output
from snapshotter.mount import mounting

STORAGE_CONF = (Path("/etc/containers/storage.conf"), Path("/usr/share/containers/storage.conf"))
"""Where root's containers/storage looks for its configuration, the first that is there counting
(containers-storage.conf(5))."""

FORGETS_FROM = (5, 5)
"""podman from here on has containers/storage 1.58 or later, which does not write down what layers it took from a store."""


@dataclass(frozen=True, slots=True)
class StorageConf:
    """What a storage.conf says: its additional layer stores, as they stand there, and the storage driver, empty for the
    default, which is overlay wherever that works."""

    stores: Sequence[str] = ()
    driver: str = ""


class Whose(Enum):
    """For whom the doctor looks: root, a user, or a user in the namespaces of that user's podman."""

    ROOT = "root"
    USER = "user"
    USER_INSIDE = "user inside"


@dataclass(frozen=True, slots=True)
class PodmanFacts:
    """`mountpoint`: of the layer store in our configuration. `mounted`: whether it is there; `present`: or at least the
    directory. `version`: what podman says of itself, empty where it is not installed. `storage_conf`: the file that counts,
    None for none; `storage`: what it says; `error`: why it cannot be read."""

    mountpoint: Path
    mounted: bool = False
    present: bool = True
    whose: Whose = Whose.ROOT
    version: str = ""
    storage_conf: Path | None = None
    storage: StorageConf = StorageConf()
    error: str = ""


def check_podman(facts: PodmanFacts, *, named_elsewhere: bool = False) -> list[Finding]:
    """All that can be said about podman and the layer store.

    `named_elsewhere`: CRI-O's own options name the store, so storage.conf need not where there is no podman.
    """
    findings = [_mounted(facts), *_version(facts)]
    return findings if named_elsewhere and not facts.version else [*findings, _storage(facts)]


def podman_facts(mountpoint: Path) -> PodmanFacts:
    """What this machine says. Nothing is looked up at or below a mounted store, which may be waiting for the daemon."""
    info = mounting.find(mountpoint)
    mounted = info is not None and info.fs_type == mounting.FS_TYPE
    present = mounted or mountpoint.is_dir()
    whose = Whose.ROOT if userns.is_root() else Whose.USER if userns.is_initial() else Whose.USER_INSIDE
    said = output(["podman", "--version"]) or ""
    version = match[1] if (match := re.search(r"(\d+\.\d+[\w.]*)", said)) else ""
    facts = PodmanFacts(mountpoint, mounted, present, whose, version)
    path = next((path for path in storage_confs(os.environ, root=whose is Whose.ROOT) if path.exists()), None)
    if path is None:
        return facts
    try:
        storage = parse_storage_conf(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return replace(facts, storage_conf=path, error=str(error))
    return replace(facts, storage_conf=path, storage=storage)


def storage_confs(environment: Mapping[str, str], *, root: bool) -> Sequence[Path]:
    """Where the containers/storage of `root`, or of a user, looks for its configuration in this environment."""
    named = environment.get("CONTAINERS_STORAGE_CONF")
    if named:
        return (Path(named),)
    if root:
        return STORAGE_CONF
    directory = environment.get("XDG_CONFIG_HOME") or f"{environment.get('HOME', '/root')}/.config"
    return (Path(directory) / "containers" / "storage.conf", *STORAGE_CONF)


def parse_storage_conf(text: str) -> StorageConf:
    """What a storage.conf says.

    Raises:
        ValueError: it is no TOML, or of another form.
    """
    storage = tomllib.loads(text).get("storage", {})
    options = storage.get("options", {}) if isinstance(storage, dict) else None
    stores = options.get("additionallayerstores", []) if isinstance(options, dict) else None
    if not isinstance(stores, list) or not all(isinstance(store, str) for store in stores):
        raise ValueError("additionallayerstores is not a list of strings")
    return StorageConf(tuple(stores), str(storage.get("driver", "")))


def _mounted(facts: PodmanFacts) -> Finding:
    check = "podman.mounted"
    if facts.mounted:
        return ok(check, f"the layer store is mounted on {facts.mountpoint}")
    if not facts.present:
        text = f"{facts.mountpoint} is missing: podman fails with every command if its storage.conf names it"
        return fail(check, text, f"mkdir -p {facts.mountpoint}, then start the daemon")
    if facts.whose is Whose.USER:
        text = f"whether the layer store is mounted on {facts.mountpoint} is seen in podman's namespaces alone"
        return warn(check, text, "podman unshare puzzlefs doctor")
    unit = "systemctl restart puzzlefs-snapshotter" if facts.whose is Whose.ROOT else "systemctl --user restart puzzlefs-store"
    return fail(check, f"the layer store is not mounted on {facts.mountpoint}", f"{unit}, and look at its log")


def _version(facts: PodmanFacts) -> list[Finding]:
    if not facts.version:
        return []
    numbers = tuple(int(number) for number in facts.version.split(".")[:2])
    if numbers < FORGETS_FROM:
        return [ok("podman.version", f"podman {facts.version} runs PuzzleFS images and keeps what it pulled")]
    text = f"podman {facts.version} runs PuzzleFS images, but does not remember them: every run asks the registry again"
    return [warn("podman.version", text, "a defect of containers/storage from 1.58 on; podman 5.4 and earlier are right")]


def _storage(facts: PodmanFacts) -> Finding:
    check = "podman.storage"
    wanted = f"{facts.mountpoint}:ref"
    line = f'additionallayerstores = ["{wanted}"] below [storage.options]'
    if facts.storage_conf is None:
        place = STORAGE_CONF[0] if facts.whose is Whose.ROOT else "~/.config/containers/storage.conf"
        return fail(check, "there is no storage.conf that names the layer store", f"write {place} with {line}")
    if facts.error:
        return fail(
            check, f"{facts.storage_conf} cannot be read: {facts.error}", "mend it: podman does not start with it either"
        )
    if facts.storage.driver not in ("", "overlay"):
        text = f"{facts.storage_conf} has the storage driver {facts.storage.driver}, which knows no layer stores"
        return fail(check, text, 'write driver = "overlay" below [storage]; podman system reset, which removes all its images')
    if wanted in facts.storage.stores:
        return ok(check, f"{facts.storage_conf} names the layer store")
    if str(facts.mountpoint) in facts.storage.stores:
        text = f"{facts.storage_conf} names the layer store without :ref, so it is not told which image a layer is of"
        return fail(check, text, f"write {line}")
    return fail(check, f"{facts.storage_conf} does not name the layer store", f"write {line}")
