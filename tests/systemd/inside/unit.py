"""``puzzlefs-snapshotter.service`` as it is shipped, under the systemd that is process 1, in two releases to switch between."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import snapshotter
from tests.support import mounts, processes, tools
from tests.support.processes import CommandError, run
from tests.support.snapshotter import Snapshotter

NAME = "puzzlefs-snapshotter.service"
RELEASES = Path("/opt/puzzlefs")
PROGRAM = Path("/usr/local/bin/puzzlefs-snapshotter")
OLD_VERSION = "0.0.9"


class Unit(Snapshotter):
    """The service, installed as the README says."""

    def __init__(self, directory: Path, plain_http: Iterable[str], containerd: Path) -> None:
        self.directory = directory
        self.root = Path("/var/lib/puzzlefs")
        self.socket = Path("/run/puzzlefs/snapshotter.sock")
        self.config = Path("/etc/puzzlefs/config.toml")
        install_releases()
        self.use("new")
        self.config.parent.mkdir(exist_ok=True)
        registries = "".join(f'[registry."{host}"]\nplain_http = true\n' for host in plain_http)
        shipped = (tools.ROOT / "deploy/puzzlefs/config.toml").read_text()
        self.config.write_text(shipped.replace("[containerd]\n", f'[containerd]\naddress = "{containerd}"\n') + registries)
        shutil.copy(tools.ROOT / "systemd" / NAME, "/etc/systemd/system/")
        run("systemctl", "daemon-reload")
        self.start()

    def use(self, release: str) -> None:
        """The release that the next start takes."""
        PROGRAM.unlink(missing_ok=True)
        PROGRAM.symlink_to(RELEASES / release / "puzzlefs-snapshotter")

    def start(self) -> None:
        """Returns when the service says that it is ready."""
        try:
            run("systemctl", "start", NAME)
        except CommandError as error:
            raise CommandError(f"{error}\n{self.journal()}") from error

    def restart(self) -> None:
        """``systemctl restart``."""
        try:
            run("systemctl", "restart", NAME)
        except CommandError as error:
            raise CommandError(f"{error}\n{self.journal()}") from error

    def stop(self) -> None:
        """Stop the service, kill what it left and unmount."""
        run("systemctl", "stop", NAME, check=False)
        for pid in self.workers():
            processes.kill(pid)
        mounts.unmount_all(self.root)

    def show(self, prop: str) -> str:
        """A property of the unit."""
        return run("systemctl", "show", "--value", "-p", prop, NAME).stdout.strip()

    def main(self) -> int:
        """The daemon's process id; 0 if it does not run."""
        return int(self.show("MainPID"))

    def workers(self) -> list[int]:
        """The process ids of mount workers."""
        return sorted(processes.find(lambda words: "snapshotter.daemon.worker_main" in words))

    def keepers(self) -> list[int]:
        """Those of our own keepers of descriptors."""
        return processes.find(lambda words: "snapshotter.mount.keeper" in words)

    def wait_for_other(self, main: int) -> None:
        """Return when systemd has started the daemon again after `main`, and it is ready."""
        deadline = time.monotonic() + 60
        while self.main() in (0, main) or self.show("ActiveState") != "active":
            if time.monotonic() > deadline:
                raise CommandError(f"the service was not started again:\n{self.journal()}")
            time.sleep(0.05)

    def journal(self) -> str:
        """What it said."""
        return run("journalctl", "--no-pager", "-q", "-o", "cat", "-u", NAME, "-n", "200", check=False).stdout


def install_releases() -> None:
    """``new``: the source tree as it is. ``old``: the same with the version, tables and protocol of an earlier release."""
    source = Path(snapshotter.__file__).parent
    for name in ("new", "old"):
        directory = RELEASES / name
        shutil.copytree(source, directory / "lib" / "snapshotter", ignore=shutil.ignore_patterns("__pycache__"))
        program = directory / "puzzlefs-snapshotter"
        start = f"{sys.executable} -c 'from snapshotter.daemon.main import main; main()'"
        program.write_text(f'#!/bin/sh\nPYTHONPATH={directory}/lib exec {start} "$@"\n')
        program.chmod(0o755)
    package = RELEASES / "old" / "lib" / "snapshotter"
    stored = (tools.ROOT / "tests/unit/snapshots/schema-1.sql").read_text()
    definition = "\n".join(re.findall(r"^CREATE .*?;$", stored, re.MULTILINE | re.DOTALL))
    (package / "snapshots/tables.py").write_text(f'VERSION = 1\nDEFINITION = """{definition}"""\n')
    _change(package / "__init__.py", r'__version__ = ".*"', f'__version__ = "{OLD_VERSION}"')
    _change(package / "mount/workerproto.py", r"PROTOCOL = \d+", "PROTOCOL = 1")
    _change(package / "snapshots/migrations.py", r".*INSERT INTO history.*\n", "")


def _change(file: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, file.read_text())
    assert count == 1, f"{file}: {pattern} is there {count} times"
    file.write_text(text)
