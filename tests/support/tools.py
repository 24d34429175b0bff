"""Where the programs of the tests and of the demonstration come from, and what to install where one is missing.

Some are taken from Debian's packages without installing those (`scripts/packages` unpacks them under ``.tools/debian``),
because their installation would start a service on the machine.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The source tree."""

STATE = ROOT / ".tools"
"""What the set-up keeps between runs: unpacked packages, built images."""

SLOWNESS = "PUZZLEFS_TEST_SLOWNESS"
"""The variable that says how many times as long things take here as on a machine of its own: in one that is emulated, some."""

UNPACKED = STATE / "debian"

PACKAGES = {
    "busybox": "busybox-static",
    "casync": "casync",
    "capnp": "capnproto",
    "containerd": "containerd",
    "containerd-shim-runc-v2": "containerd",
    "ctr": "containerd",
    "debugfs": "e2fsprogs",
    "docker-registry": "docker-registry",
    "fio": "fio",
    "fsverity": "fsverity",
    "fusermount3": "fuse3",
    "ip": "iproute2",
    "mke2fs": "e2fsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "mksquashfs": "squashfs-tools",
    "mmdebstrap": "mmdebstrap",
    "qemu-system-x86_64": "qemu-system-x86",
    "runc": "runc",
    "skopeo": "skopeo",
    "squashfuse": "squashfuse",
    "systemctl": "systemd",
    "tc": "iproute2",
    "umoci": "umoci",
}
"""Program → the Debian package that has it."""


class MissingToolError(Exception):
    """A program is not on this machine; the message names its Debian package."""


def search_path() -> str:
    """``PATH``, the administrator's directories, and the unpacked packages behind them."""
    extra = ["/usr/local/sbin", "/usr/sbin", "/sbin", *(str(UNPACKED / d) for d in ("usr/bin", "usr/sbin", "bin"))]
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *extra])


def find(name: str) -> str:
    """Absolute path of a program.

    Raises:
        MissingToolError: it is neither installed nor unpacked.
    """
    # The machine's own busybox may be linked dynamically; ours runs in a container that has nothing else.
    path = search_path() if name != "busybox" else str(UNPACKED / "bin")
    found = shutil.which(name, path=path)
    if found is None:
        package = PACKAGES.get(name, name)
        raise MissingToolError(f"{name} is missing: it is in Debian's package {package}; `make packages` provides it")
    return found


def environment() -> dict[str, str]:
    """The environment for child processes: this process's, with `search_path`."""
    return {**os.environ, "PATH": search_path()}


def slowness() -> float:
    """By how much the time has to be multiplied that a test waits before it gives up."""
    return float(os.environ.get(SLOWNESS, "1"))
