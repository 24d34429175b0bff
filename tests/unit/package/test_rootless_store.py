"""How a user's daemon gets into the namespaces of the user's podman, with programs in place of podman and nsenter."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

from snapshotter.daemon.config import load
from tests.support import tools
from tests.support.processes import run

DEPLOYED = tools.ROOT / "deploy" / "podman" / "rootless"

# What is done is written down. podman, which fails without the store's directory, makes namespaces; nsenter enters those alone.
_PODMAN = """#!/bin/sh
[ -d ~/.local/share/puzzlefs-store ] || exit 125
echo "podman $*" >>$LOG
mkdir -p $XDG_RUNTIME_DIR/libpod/tmp
echo 42 >$XDG_RUNTIME_DIR/libpod/tmp/pause.pid
touch $NAMESPACES
"""
_NSENTER = """#!/bin/sh
[ "$1 $2" = "--target 42" ] && [ -e $NAMESPACES ] || exit 1
while [ "$1" != -- ]; do shift; done
shift
[ "$*" = true ] || echo "inside $*" >>$LOG
"""


@pytest.fixture
def user(tmp_path: Path) -> dict[str, str]:
    """The environment of one who has never run podman."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in (("podman", _PODMAN), ("nsenter", _NSENTER)):
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    return {
        "PATH": f"{programs}:/usr/bin:/bin",
        "HOME": str(tmp_path / "home"),
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "LOG": str(tmp_path / "log"),
        "NAMESPACES": str(tmp_path / "namespaces"),
    }


def _start(user: dict[str, str]) -> list[str]:
    """Start the daemon; what was done for it."""
    log = Path(user["LOG"])
    log.write_text("")
    run("env", "-i", *(f"{name}={value}" for name, value in user.items()), DEPLOYED / "puzzlefs-store")
    return log.read_text().splitlines()


def test_podman_makes_namespaces_once(user: dict[str, str]) -> None:
    """Afterwards it is not asked: it would wait for the store, and that for the daemon. It is when they have ended."""
    entered = f"inside puzzlefs-snapshotter --config {user['HOME']}/.config/puzzlefs/config.toml"
    assert _start(user) == ["podman unshare true", entered]
    assert _start(user) == [entered]
    Path(user["NAMESPACES"]).unlink()  # podman system migrate
    assert _start(user) == ["podman unshare true", entered]


def test_the_files_agree() -> None:
    """On where the store is, and what the unit runs."""
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.read(DEPLOYED / "puzzlefs-store.service")
    assert unit["Service"]["ExecStart"] == "%h/.local/bin/puzzlefs-store"
    config = load(DEPLOYED / "config.toml")
    assert config.layer_store_mountpoint == Path("/home/USER/.local/share/puzzlefs-store")
    assert "mkdir -p ~/.local/share/puzzlefs-store\n" in (DEPLOYED / "puzzlefs-store").read_text()
    assert config.address.is_relative_to(config.root)
