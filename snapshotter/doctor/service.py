"""The daemon on this node: its configuration, root, socket, unit, disk and mounts."""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from snapshotter.daemon.config import Config
from snapshotter.doctor.finding import Finding, fail, ok, warn

FREE_FAIL = 0.02
"""Part of the disk that must be free: below it writes begin to fail."""
FREE_WARN = 0.10
SOCKET_MODE = 0o600

_UNIT = "puzzlefs-snapshotter.service"


@dataclass(frozen=True, slots=True)
class PathFacts:
    """A path as lstat(2) shows it; `mode` with the file type, `error` why it could not be looked at."""

    path: str
    mode: int = 0
    uid: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """What was found out about the daemon.

    `config`: None if it cannot be read (`config_error`). `ancestors`: the directories above the root. `socket_refused`: why
    the socket takes no connection, empty if it does. `unit`: properties of the systemd unit, empty without systemd or unit.
    `size` and `free`: bytes of the root's file system, 0 if unknown. `namespaces`: of daemon and containerd, what
    /proc/PID/ns/mnt says, empty where unknown. `shared`: whether mounts below the root propagate. `waiting`: for every mount
    of ours the requests that the kernel has not got answers to. `status`: what the daemon says of itself
    (`daemon.status.Overview.to_json`), None where it cannot be asked.
    """

    config: Config | None
    config_error: str = ""
    config_file: PathFacts = PathFacts("", error="there is none")
    root: PathFacts = PathFacts("")
    ancestors: Sequence[PathFacts] = ()
    socket: PathFacts = PathFacts("")
    socket_refused: str = ""
    unit: Mapping[str, str] | None = None
    size: int = 0
    free: int = 0
    namespaces: tuple[str, str] = ("", "")
    shared: bool = False
    waiting: Mapping[str, int] | None = None
    status: Mapping[str, Any] | None = None


def check_service(facts: ServiceFacts) -> list[Finding]:
    """All that can be said about the daemon itself."""
    if facts.config is None:
        return [fail("daemon.config", facts.config_error, "mend that line, and systemctl restart puzzlefs-snapshotter")]
    findings = [
        _config(facts, facts.config),
        _root(facts),
        _socket(facts),
        *_unit(facts),
        *_propagation(facts),
        _disk(facts, facts.config),
    ]
    return [*findings, *_waiting(facts), *_health(facts)]


def _config(facts: ServiceFacts, config: Config) -> Finding:
    check, file = "daemon.config", facts.config_file
    secret = any(registry.credentials is not None for registry in config.registries.values())
    if secret and not file.error and (file.mode & 0o077 or file.uid != 0):
        text = f"{file.path} has passwords in it and can be read by others (mode {file.mode & 0o7777:04o})"
        return warn(check, text, f"chown root {file.path} && chmod 600 {file.path}")
    return ok(check, f"root {config.root}, socket {config.address}")


def _root(facts: ServiceFacts) -> Finding:
    check, root = "daemon.root", facts.root
    if root.error:
        return fail(check, f"{root.path}: {root.error}", "start the daemon once; run puzzlefs doctor as root")
    if not stat.S_ISDIR(root.mode):
        return fail(check, f"{root.path} is no directory", "name a directory as root in the configuration")
    if root.uid != 0 or root.mode & 0o022:
        text = f"{root.path} belongs to user {root.uid} with mode {root.mode & 0o7777:04o}: others could change images"
        return fail(check, text, f"chown root {root.path} && chmod go-w {root.path}")
    for above in facts.ancestors:
        if above.mode & 0o022 and not above.mode & stat.S_ISVTX:
            return fail(check, f"{above.path}, above the root, can be written by others", f"chmod go-w {above.path}")
    return ok(check, f"{root.path} is root's, nobody else can write it")


def _socket(facts: ServiceFacts) -> Finding:
    check, socket = "daemon.socket", facts.socket
    start = "systemctl status puzzlefs-snapshotter; journalctl -u puzzlefs-snapshotter"
    if socket.error:
        return fail(check, f"{socket.path}: {socket.error}: the daemon does not run", start)
    if not stat.S_ISSOCK(socket.mode):
        return fail(check, f"{socket.path} is no socket", "remove it, and systemctl restart puzzlefs-snapshotter")
    if socket.uid != 0 or socket.mode & 0o077:
        text = f"{socket.path} belongs to user {socket.uid} with mode {socket.mode & 0o7777:04o}: who can use it is root"
        return fail(check, text, f"chown root {socket.path} && chmod {SOCKET_MODE:o} {socket.path}")
    if facts.socket_refused:
        return fail(check, f"{socket.path} does not answer: {facts.socket_refused}", start)
    return ok(check, f"{socket.path} answers, and only root may use it")


def _unit(facts: ServiceFacts) -> list[Finding]:
    check, unit = "daemon.unit", facts.unit
    if unit is None:
        return [ok(check, "not the system's systemd runs the daemon: whoever does must leave its workers alone when it ends")]
    if unit.get("LoadState") != "loaded":
        text = f"systemd has no unit {_UNIT}"
        return [warn(check, text, f"install systemd/{_UNIT}, and systemctl enable --now puzzlefs-snapshotter")]
    findings = []
    kill = unit.get("KillMode", "")
    if kill != "process":
        text = f"KillMode={kill} ends the mount workers with the daemon: a restart takes the files of running containers"
        findings.append(fail(check, text, f"set KillMode=process in {_UNIT}, and systemctl daemon-reload"))
    if unit.get("FileDescriptorStoreMax", "0") == "0":
        text = "systemd keeps no descriptors: mounts do not outlive the death of the daemon and all its workers at once"
        findings.append(warn(check, text, f"set FileDescriptorStoreMax=8192 in {_UNIT}, and systemctl daemon-reload"))
    if unit.get("UnitFileState") not in ("enabled", "enabled-runtime", "static"):
        text = f"{_UNIT} is not started with the machine: after a reboot containers on it cannot start"
        findings.append(warn(check, text, "systemctl enable puzzlefs-snapshotter"))
    if unit.get("ActiveState") not in ("active", "reloading"):
        findings.append(fail(check, f"{_UNIT} is {unit.get('ActiveState', 'unknown')}", "systemctl start puzzlefs-snapshotter"))
    return findings or [ok(check, f"{_UNIT} runs and is enabled, KillMode=process")]


def _propagation(facts: ServiceFacts) -> list[Finding]:
    check = "daemon.mount-propagation"
    daemon, containerd = facts.namespaces
    if daemon and containerd and daemon == containerd:
        return [ok(check, "the daemon and containerd are in one mount namespace")]
    if facts.shared:
        return [ok(check, "mounts below the root propagate to other mount namespaces")]
    if daemon and containerd:
        text = "the daemon and containerd are in different mount namespaces, and mounts below the root do not propagate"
        return [fail(check, text, "take PrivateMounts= and the like out of both units, or mount --make-rshared /")]
    return []


def _disk(facts: ServiceFacts, config: Config) -> Finding:
    check = "daemon.disk"
    if not facts.size:
        return warn(check, "the free space of the root is unknown", "run puzzlefs doctor as root")
    free = facts.free / facts.size
    text = f"{_gib(facts.free)} of {_gib(facts.size)} free"
    cap = config.cache_max_bytes
    if free < FREE_FAIL:
        return fail(check, f"{text}: writes of containers begin to fail", "puzzlefs cache prune; remove images")
    if cap is not None and cap > facts.size:
        return warn(check, f"{text}; the cache may take {_gib(cap)}, more than the disk has", "lower cache.max_size")
    if free < FREE_WARN:
        return warn(check, text, "puzzlefs cache prune; set or lower cache.max_size in the configuration")
    if cap is None:
        return ok(check, f"{text}, the cache has no cap", 'max_size = "20GiB" under [cache] sets one')
    return ok(check, f"{text}, the cache may take {_gib(cap)}")


def _waiting(facts: ServiceFacts) -> list[Finding]:
    if facts.waiting is None:
        return []
    stuck = {where: count for where, count in facts.waiting.items() if count}
    if stuck:
        places = ", ".join(f"{where} ({count})" for where, count in sorted(stuck.items())[:5])
        text = f"{len(stuck)} of {len(facts.waiting)} mounts have reads that wait: {places}"
        return [warn("daemon.mounts", text, "puzzlefs status shows for what")]
    return [ok("daemon.mounts", f"{len(facts.waiting)} layers are mounted, no read waits")]


def _health(facts: ServiceFacts) -> list[Finding]:
    """What the daemon itself complains of."""
    if facts.status is None:
        return []
    check, look = "daemon.health", "puzzlefs status shows more, journalctl -u puzzlefs-snapshotter all"
    findings = []
    failed = facts.status["failed"]
    if failed:
        layer, why = next(iter(failed.items()))
        text = f"{len(failed)} layers are not mounted: {layer[:19]}: {why}"
        findings.append(fail(check, text, "remove the images that have them, and pull them again"))
    silent = [str(worker["number"]) for worker in facts.status["workers"] if not worker["answers"] and worker["mounts"]]
    if silent:
        findings.append(fail(check, f"mount workers {', '.join(silent)} do not answer", look))
    deaths = sum(worker["deaths"] for worker in facts.status["workers"])
    if deaths:
        findings.append(warn(check, f"mount workers died {deaths} times lately", look))
    hung = sum(reads["hung"] for reads in facts.status["reads"].values())
    if hung:
        findings.append(warn(check, f"{hung} reads wait for longer than 5 s", look))
    return findings or [ok(check, f"the daemon has served since {facts.status['started']} and complains of nothing")]


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
