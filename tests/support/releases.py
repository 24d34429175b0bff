"""The releases of containerd that the tests of clients run with: this machine's, and those of later Debian releases."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from tests.support import tools
from tests.support.processes import run


@dataclass(frozen=True, slots=True)
class Release:
    """One release: its programs are those in `directory`, or the machine's where that is None."""

    name: str
    directory: Path | None = None

    def find(self, program: str) -> str:
        """Absolute path of ``containerd``, its shim or ``ctr``.

        Raises:
            MissingToolError: it is not there.
        """
        if self.directory is None:
            return tools.find(program)
        path = self.directory / program
        if not path.exists():
            raise tools.MissingToolError(f"{path} is missing: `make containerds` provides it")
        return str(path)

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which containerd finds its shim."""
        path = tools.search_path()
        return {**os.environ, "PATH": path if self.directory is None else f"{self.directory}{os.pathsep}{path}"}

    @property
    def version(self) -> tuple[int, int]:
        """The first two numbers of its version."""
        found = re.search(r" v?(\d+)\.(\d+)\.", run(self.find("containerd"), "--version").stdout)
        assert found is not None
        return int(found[1]), int(found[2])


def _unpacked(name: str) -> Release:
    return Release(name, tools.STATE / "containerd" / name / "usr/bin")


MACHINE = Release("machine")
TRIXIE = _unpacked("trixie")
FORKY = _unpacked("forky")
RELEASES = (MACHINE, TRIXIE, FORKY)
"""1.6 on Debian 12, then 1.7, then 2.1 or later."""
