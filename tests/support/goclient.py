"""The small program on containerd's client library (``tests/system/goclient``), and the Go compiler that makes it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.support import tools
from tests.support.containerd import Containerd
from tests.support.processes import run

MODULE = tools.ROOT / "tests/system/goclient"


def go() -> str:
    """The Go compiler, which need not be in the PATH.

    Raises:
        MissingToolError: there is none.
    """
    found = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if found is None:
        raise tools.MissingToolError(
            "go is missing: install Go 1.25 or later (Debian 12 has none); its modules come from a Go module proxy"
        )
    return found


def environment() -> dict[str, str]:
    """The environment for the compiler: what it downloads and compiles is kept with the rest of the tests' set-up."""
    kept = tools.STATE / "go"
    return {**os.environ, "GOFLAGS": "-mod=readonly", "GOMODCACHE": str(kept / "mod"), "GOCACHE": str(kept / "build")}


def build(directory: Path) -> Path:
    """The program, compiled into `directory`.

    Raises:
        MissingToolError: there is no Go compiler.
    """
    made = directory / "goclient"
    subprocess.run([go(), "build", "-o", str(made), "."], cwd=MODULE, env=environment(), check=True, timeout=600)
    return made


class GoClient:
    """The program as a client of one containerd, in its namespace."""

    def __init__(self, program: Path, containerd: Containerd) -> None:
        self._program = program
        self._containerd = containerd

    def __call__(self, *arguments: str | Path, snapshotter: str = "puzzlefs", namespace: str | None = None) -> Any:
        """Run a subcommand; its answer.

        Raises:
            CommandError: it failed.
        """
        directory = self._containerd.directory
        words: list[str | Path] = [self._program, "-a", self._containerd.socket]
        words += ["-n", namespace or self._containerd.namespace, "-snapshotter", snapshotter]
        words += ["-runc", tools.find("runc"), "-directory", directory / "go", "-cgroup", self._containerd.namespace]
        said = run(*words, *arguments, timeout=300).stdout
        return json.loads(said) if said else None
