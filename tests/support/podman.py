"""podman of a Debian release, run from its unpacked packages, with storage and configuration of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support import tools
from tests.support.leaks import MARK as LEAK_MARK
from tests.support.processes import CommandError
from tests.support.userns import UserNamespace

TREES = tools.STATE / "podman"
"""Made by ``scripts/podmans``."""

DEPLOYED = tools.ROOT / "deploy" / "podman"

RECORDING = ("bookworm", "trixie")
"""podman 4.3, which asks a layer store by blob digest, and 5.4, which asks by TOC digest."""
RELEASES = (*RECORDING, "forky")
"""And 5.8, which does not write down the layers that it takes from a store (containers/storage from 1.58): every command that
needs an image asks for it again, and an image that is there is never said to be."""

# In a mount namespace of its own, which lasts as long as this process does: the release's tree as the root, and in it what the
# test shares with it. Not a chroot: what runc enters later is the namespace's root.
_PREPARE = """
import ctypes, os, subprocess, sys
tree, shared, run = sys.argv[1:]
def mount(*arguments):
    subprocess.run(["mount", *arguments], check=True)
mount("--bind", tree, tree)
for directory in ("/proc", "/sys", "/dev"):
    mount("--rbind", directory, tree + directory)
mount("-t", "tmpfs", "tmpfs", tree + "/tmp")
os.makedirs(tree + shared)
mount("--rbind", shared, tree + shared)
mount("--bind", run, tree + "/run")
os.chdir(tree)
libc = ctypes.CDLL(None, use_errno=True)
for call, arguments in (("pivot_root", (b".", b".")), ("umount2", (b".", 2))):
    if getattr(libc, call)(*arguments) != 0:
        sys.exit(f"{call}: {os.strerror(ctypes.get_errno())}")
print("ready", flush=True)
sys.stdin.read()
"""


class Podman:
    """podman of `release`; images and containers below `directory`, layers from the store at `store`.

    `directory` and `store` must lie below `shared`, which is the one directory that podman sees of this machine. `insecure` are
    registries without TLS. In `namespace` it is an ordinary user's podman, as in a shell of ``podman unshare``.
    """

    def __init__(
        self,
        release: str,
        shared: Path,
        directory: Path,
        store: Path,
        insecure: str,
        namespace: UserNamespace | None = None,
    ) -> None:
        """Raises MissingToolError: the release's packages are not unpacked."""
        tree = TREES / release
        if not tree.is_dir():
            raise tools.MissingToolError(f"podman of Debian {release} is missing: `make packages` provides it")
        self.directory = directory
        self._run = directory / "run"
        # a login session's; without it, podman 4.3 waits 20 s for each container's end
        self._session = self._run / "user"
        self._session.mkdir(mode=0o700, parents=True)
        if namespace is None:
            self._storage = directory / "storage.conf"
            text = (DEPLOYED / "storage.conf").read_text().replace("/var/lib/puzzlefs-store", str(store))
            text = text.replace("/var/lib/containers/storage", f"{directory}/root")
        else:
            self._storage = directory / ".config" / "containers" / "storage.conf"
            text = (DEPLOYED / "rootless" / "storage.conf").read_text()
            text = text.replace("/home/USER/.local/share/puzzlefs-store", str(store))
        self._storage.parent.mkdir(parents=True, exist_ok=True)
        self._storage.write_text(text)
        (directory / "registries.conf").write_text(f'[[registry]]\nlocation = "{insecure}"\ninsecure = true\n')
        policy = directory / ".config" / "containers" / "policy.json"
        policy.parent.mkdir(parents=True, exist_ok=True)
        policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
        # crun refuses the cgroups of version 1 that some test machines have
        (directory / "containers.conf").write_text(
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        )
        self._user = namespace
        if namespace is not None:
            namespace.own(directory)
        self._namespace = subprocess.Popen(
            [
                *(() if namespace is None else namespace.enter()),
                tools.find("unshare"),
                "--mount",
                "--propagation",
                "slave",
                sys.executable,
                "-c",
                _PREPARE,
                str(tree),
                str(shared),
                str(self._run),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._namespace.stdout is not None
        if self._namespace.stdout.readline() != "ready\n":
            raise CommandError(f"podman of Debian {release} cannot be entered: {self._namespace.communicate()[1]}")

    def __call__(self, *arguments: str | Path, check: bool = True, timeout: float = 120) -> str:
        """What podman printed.

        Raises:
            CommandError: it failed, and `check` is set.
        """
        pid = self._namespace.pid
        enter = [tools.find("nsenter"), "--mount", "--target", str(pid)] if self._user is None else self._user.enter(pid)
        done = subprocess.run(
            [*enter, "podman", *map(str, arguments)],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode != 0:
            raise CommandError(f"podman {' '.join(map(str, arguments))}: exit status {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def run(self, image: str, *command: str) -> str:
        """What `command` printed in a new container of `image`."""
        return self("run", "--rm", *self._allowed(), image, *command)

    def start(self, image: str, *command: str) -> tuple[str, int]:
        """Start a container in the background: its ID, and its process."""
        identity = self("run", "--detach", *self._allowed(), image, *command).strip()
        return identity, int(self("inspect", "--format", "{{.State.Pid}}", identity))

    def close(self) -> None:
        """End and remove all containers and images, and unmount what podman mounted."""
        self("rm", "--all", "--force", "--time", "0", check=False)
        self("rmi", "--all", "--force", check=False)
        self._namespace.kill()
        self._namespace.communicate()
        shutil.rmtree(self.directory)

    def _allowed(self) -> list[str]:
        # podman raises limits to what it finds, which a machine without CAP_SYS_RESOURCE for containers refuses
        return ["--network", "host", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.directory),
            "TMPDIR": str(self._run),
            "CONTAINERS_REGISTRIES_CONF": str(self.directory / "registries.conf"),
            "CONTAINERS_CONF": str(self.directory / "containers.conf"),
            "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",
            LEAK_MARK: os.environ.get(LEAK_MARK, ""),
            **(
                {"CONTAINERS_STORAGE_CONF": str(self._storage)}
                if self._user is None
                else {"XDG_RUNTIME_DIR": str(self._session), **self._user.podman()}
            ),
        }
