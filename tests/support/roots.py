"""Whole Debian root file systems to build images from, made by mmdebstrap and kept under ``.tools/roots``."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path

from tests.support import tools
from tests.support.debian import apt_mirrors, apt_proxies
from tests.support.processes import run

ROOTS = {
    "python": ("bookworm", "minbase", "python3,python3-numpy,python3-scipy,libcap2-bin,iputils-ping"),
    "development": ("bookworm", "minbase", "build-essential,git,cmake,python3-dev,linux-libc-dev,perl-doc,tzdata,locales"),
    "trixie": ("trixie", "standard", "python3,systemd,openssh-server,man-db,ncurses-term"),
}
"""Name → suite, mmdebstrap's variant, packages. Set-user-ID programs, capabilities, ACLs of the journal, many small files."""

_HOME = tools.STATE / "roots"


def root(name: str) -> Path:
    """The root file system `name`, made if it is not there: a minute or two, and the network.

    Raises:
        MissingToolError, CommandError, NoMirrorError: it cannot be made.
    """
    suite, variant, packages = ROOTS[name]
    directory = _HOME / name
    _HOME.mkdir(parents=True, exist_ok=True)
    with (_HOME / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            unfinished = _HOME / f".{name}"
            shutil.rmtree(unfinished, ignore_errors=True)
            uri = apt_mirrors()[0][0]
            options = [f"--aptopt={line}" for line in apt_proxies()]
            run(
                "mmdebstrap",
                "--mode=root",
                "--format=directory",
                f"--variant={variant}",
                f"--include={packages}",
                *options,
                suite,
                unfinished,
                f"deb {uri} {suite} main",
                timeout=1800,
            )
            unfinished.rename(directory)
    return directory
