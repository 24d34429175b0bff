"""The programs under test: ``puzzlefs-snapshotter`` as a service, ``puzzlefs`` as a command."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.support import mounts, processes
from tests.support.processes import CommandError, Service


def program(name: str) -> str:
    """The console script beside the running interpreter.

    Raises:
        CommandError: this environment does not have the package installed.
    """
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise CommandError(f"{path} is missing: install the package into this environment (`make venv`)")
    return str(path)


def puzzlefs(*arguments: str | Path, check: bool = True, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run ``puzzlefs``.

    Raises:
        CommandError: it failed, and `check` is set.
    """
    return processes.run(program("puzzlefs"), *arguments, check=check, timeout=timeout)


class Snapshotter:
    """``puzzlefs-snapshotter`` below `directory`, listening at `socket`; `plain_http` are registries without TLS.

    `containerd` is the socket of the containerd that it works for, which need not be there yet. ``hosts.toml`` files go below
    `hosts`; `settings` is more of the configuration, to which more can be appended before a `start`.
    `enter`: words before the daemon's, by which it is run somewhere else.
    """

    def __init__(
        self,
        directory: Path,
        plain_http: Iterable[str] = (),
        read_timeout: int = 60,
        containerd: Path | None = None,
        settings: str = "",
        enter: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self._enter = enter
        self.root = directory / "root"
        self.socket = directory / "snapshotter.sock"
        self.config = directory / "config.toml"
        self.log = directory / "snapshotter.log"
        directory.mkdir(parents=True, exist_ok=True)
        self.hosts = directory / "certs.d"
        lines = ["[fetch]", f"read_timeout = {read_timeout}", "[background]", "enabled = false"]
        lines += ["[containerd]", f'address = "{containerd or directory}"', f'config_path = "{self.hosts}"']
        for host in plain_http:
            lines += [f'[registry."{host}"]', "plain_http = true"]
        self.config.write_text("\n".join(lines) + f"\n{settings}\n")
        self.service: Service
        self.start()

    def pull(
        self, reference: str, namespace: str, *more: str | Path, check: bool = True, timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """``puzzlefs pull`` by this daemon into `namespace` of its containerd.

        Raises:
            CommandError: it failed, and `check` is set.
        """
        return puzzlefs("pull", reference, "--socket", self.socket, "-n", namespace, *more, check=check, timeout=timeout)

    def start(self) -> None:
        """Start the daemon; returns when it takes connections."""
        command: list[str | Path] = [
            *self._enter,
            program("puzzlefs-snapshotter"),
            "--config",
            self.config,
            "--root",
            self.root,
        ]
        command += ["--address", self.socket, "--log-level", "info"]
        self.service = Service(command, self.log)
        try:
            self.service.wait_until(self._answers, "listening")
        except BaseException:
            self.service.stop()
            raise

    def terminate(self) -> tuple[int, float]:
        """Send SIGTERM and wait; (exit status, seconds it took)."""
        start = time.monotonic()
        status = self.service.stop()
        return status, time.monotonic() - start

    def kill_helpers(self) -> None:
        """Kill the processes that a daemon leaves behind to running containers."""
        for helper in processes.find(lambda words: any(str(self.root) in word for word in words)):
            processes.kill(helper)

    def stop(self) -> None:
        """End the daemon and what belongs to it, unmount and delete everything below the directory."""
        self.service.stop()
        self.kill_helpers()
        mounts.unmount_all(self.directory)
        shutil.rmtree(self.directory)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
        return True
