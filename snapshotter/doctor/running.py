"""Looks at the running containerd: its version and plugins over its API, its configuration as it takes effect."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import grpc

from snapshotter.doctor import containerdconfig
from snapshotter.doctor.containerd import ContainerdFacts, LoadedPlugin
from snapshotter.doctor.inventory import Inventory
from snapshotter.doctor.machine import output, peer
from snapshotter.errors import PuzzlefsError
from snapshotter.snapshots.paths import check_ancestors

CONTAINERD_CONFIG = "/etc/containerd/config.toml"


def containerd_facts(address: Path, config_path: str | None) -> tuple[ContainerdFacts, int]:
    """What is known about the containerd at `address`, and its process id (0: unknown)."""
    pid, refused = peer(address)
    version, unreachable = "", refused
    loaded: tuple[LoadedPlugin, ...] = ()
    if not refused:
        try:
            with Inventory(address) as inventory:
                version, loaded = inventory.version(), inventory.plugins()
        except (PuzzlefsError, grpc.RpcError) as error:
            unreachable = str(error.details() if isinstance(error, grpc.Call) else error)
    facts = ContainerdFacts(str(address), version, unreachable, loaded)
    path = config_path or _running_config(pid)
    try:
        config, source = _effective(path, pid, facts.numbers)
    except PuzzlefsError as error:
        return ContainerdFacts(str(address), version, unreachable, loaded, config_error=str(error)), pid
    return ContainerdFacts(str(address), version, unreachable, loaded, config, source), pid


def _effective(path: str, pid: int, numbers: tuple[int, int] | None) -> tuple[containerdconfig.Effective, str]:
    """The configuration in the file `path`: as the running program itself reads it, else as we do."""
    with contextlib.suppress(PuzzlefsError, OSError):
        if pid and may_be_run(pid):
            dumped = output([f"/proc/{pid}/exe", "--config", path, "config", "dump"])
            if dumped:
                return containerdconfig.effective(containerdconfig.parse(dumped), numbers), path
    raw = containerdconfig.load(path, merge_plugins=numbers is None or numbers >= (2, 0))
    return containerdconfig.effective(raw, numbers), path


def may_be_run(pid: int) -> bool:
    """Whether the program of the process `pid` is one that this user trusts anyway: a process that listens at a socket which
    somebody named could be anybody's, and what it runs would run as root."""
    trusted = (0, os.geteuid())
    try:
        process, program = os.stat(f"/proc/{pid}"), os.stat(f"/proc/{pid}/exe")
        check_ancestors(Path(os.readlink(f"/proc/{pid}/exe")))
    except (OSError, PuzzlefsError):
        return False
    return process.st_uid in trusted and program.st_uid in trusted and not program.st_mode & 0o022


def _running_config(pid: int) -> str:
    """The configuration file that the running containerd was started with."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="surrogateescape").split("\0")
        for at, word in enumerate(words):
            name, equals, value = word.partition("=")
            if name in ("-c", "--config", "-config"):
                return value if equals else words[at + 1]
    return CONTAINERD_CONFIG
