"""What is said about the daemon, its files, its unit and its disk."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from snapshotter.daemon.config import Config
from snapshotter.doctor.finding import Level, worst
from snapshotter.doctor.service import PathFacts, ServiceFacts, check_service
from snapshotter.registry.credentials import Credentials
from snapshotter.registry.hosts import RegistryConfig

GOOD = ServiceFacts(
    config=Config(cache_max_bytes=20 << 30),
    root=PathFacts("/var/lib/puzzlefs", stat.S_IFDIR | 0o700),
    ancestors=(PathFacts("/var/lib", stat.S_IFDIR | 0o755), PathFacts("/", stat.S_IFDIR | 0o755)),
    socket=PathFacts("/run/puzzlefs/snapshotter.sock", stat.S_IFSOCK | 0o600),
    unit={
        "LoadState": "loaded",
        "ActiveState": "active",
        "UnitFileState": "enabled",
        "KillMode": "process",
        "FileDescriptorStoreMax": "8192",
    },
    size=100 << 30,
    free=50 << 30,
    namespaces=("mnt:[1]", "mnt:[1]"),
    waiting={"/var/lib/puzzlefs/l/1": 0},
    status={
        "started": "2026-01-02T03:04:05+00:00",
        "failed": {},
        "workers": [{"number": 0, "mounts": 1, "deaths": 0, "answers": True}],
        "reads": {"read": {"hung": 0}, "fetch": {"hung": 0}},
    },
)


def secret(mode: int) -> ServiceFacts:
    """A node whose configuration has a password in it."""
    registries = {"r.example": RegistryConfig(credentials=Credentials("user", "password"))}
    file = PathFacts("/etc/puzzlefs/config.toml", stat.S_IFREG | mode)
    return replace(GOOD, config=Config(registries=registries), config_file=file)


def status(**changed: object) -> ServiceFacts:
    assert GOOD.status is not None
    return replace(GOOD, status={**GOOD.status, **changed})


def levels(facts: ServiceFacts) -> dict[str, Level]:
    return {found.check: found.level for found in check_service(facts)}


def unit(**changed: str) -> ServiceFacts:
    assert GOOD.unit is not None
    return replace(GOOD, unit={**GOOD.unit, **changed})


def test_a_good_node() -> None:
    assert worst(check_service(GOOD)) is Level.OK


@pytest.mark.parametrize(
    ("facts", "check", "level"),
    [
        (replace(GOOD, config=None, config_error="unknown key"), "daemon.config", Level.FAIL),
        (secret(0o644), "daemon.config", Level.WARN),
        (secret(0o600), "daemon.config", Level.OK),
        (replace(GOOD, root=PathFacts("/r", error="No such file")), "daemon.root", Level.FAIL),
        (replace(GOOD, root=PathFacts("/r", stat.S_IFLNK | 0o777)), "daemon.root", Level.FAIL),
        (replace(GOOD, root=PathFacts("/r", stat.S_IFDIR | 0o770)), "daemon.root", Level.FAIL),
        (replace(GOOD, root=PathFacts("/r", stat.S_IFDIR | 0o700, uid=1000)), "daemon.root", Level.FAIL),
        (replace(GOOD, ancestors=(PathFacts("/x", stat.S_IFDIR | 0o777),)), "daemon.root", Level.FAIL),
        (replace(GOOD, ancestors=(PathFacts("/tmp", stat.S_IFDIR | 0o1777),)), "daemon.root", Level.OK),
        (replace(GOOD, socket=PathFacts("/s", error="No such file")), "daemon.socket", Level.FAIL),
        (replace(GOOD, socket=PathFacts("/s", stat.S_IFREG | 0o600)), "daemon.socket", Level.FAIL),
        (replace(GOOD, socket=PathFacts("/s", stat.S_IFSOCK | 0o660)), "daemon.socket", Level.FAIL),
        (replace(GOOD, socket=PathFacts("/s", stat.S_IFSOCK | 0o600, uid=5)), "daemon.socket", Level.FAIL),
        (replace(GOOD, socket_refused="Connection refused"), "daemon.socket", Level.FAIL),
        (replace(GOOD, unit=None), "daemon.unit", Level.OK),
        (unit(KillMode="control-group"), "daemon.unit", Level.FAIL),
        (unit(ActiveState="failed"), "daemon.unit", Level.FAIL),
        (unit(FileDescriptorStoreMax="0"), "daemon.unit", Level.WARN),
        (unit(UnitFileState="disabled"), "daemon.unit", Level.WARN),
        (unit(LoadState="not-found"), "daemon.unit", Level.WARN),
        (replace(GOOD, namespaces=("mnt:[1]", "mnt:[2]")), "daemon.mount-propagation", Level.FAIL),
        (replace(GOOD, namespaces=("mnt:[1]", "mnt:[2]"), shared=True), "daemon.mount-propagation", Level.OK),
        (replace(GOOD, free=1 << 30), "daemon.disk", Level.FAIL),
        (replace(GOOD, free=5 << 30), "daemon.disk", Level.WARN),
        (replace(GOOD, size=10 << 30, free=5 << 30), "daemon.disk", Level.WARN),
        (replace(GOOD, config=Config()), "daemon.disk", Level.OK),
        (replace(GOOD, size=0), "daemon.disk", Level.WARN),
        (replace(GOOD, waiting={"/l/1": 3}), "daemon.mounts", Level.WARN),
        (status(failed={"sha256:ab": "its metadata is gone"}), "daemon.health", Level.FAIL),
        (status(workers=[{"number": 0, "mounts": 1, "deaths": 0, "answers": False}]), "daemon.health", Level.FAIL),
        (status(workers=[{"number": 0, "mounts": 1, "deaths": 2, "answers": True}]), "daemon.health", Level.WARN),
        (status(reads={"read": {"hung": 1}, "fetch": {"hung": 0}}), "daemon.health", Level.WARN),
    ],
)
def test_what_is_wrong(facts: ServiceFacts, check: str, level: Level) -> None:
    assert levels(facts)[check] is level
    for found in check_service(facts):
        assert found.advice or found.level is Level.OK, found


def test_unknown_namespaces_are_not_judged() -> None:
    assert "daemon.mount-propagation" not in levels(replace(GOOD, namespaces=("", "mnt:[2]")))


def test_the_shipped_configuration_has_no_wrong_path() -> None:
    assert Config().root == Path("/var/lib/puzzlefs")
