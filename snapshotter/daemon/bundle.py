"""A container's configuration for runc (OCI runtime specification), from an image's: enough to watch a start, no more.

The container gets the namespaces and mounts that every runtime gives, and the host's network, since what it does is to be what
it does at its users'. Capabilities are docker's default ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from snapshotter.errors import InvalidError

_CAPABILITIES = [
    f"CAP_{name}"
    for name in (
        "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
        "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
    )
]  # fmt: skip
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def command_of(config: Mapping[str, Any], given: Sequence[str]) -> list[str]:
    """What a container of the image with the configuration `config` runs: `given`, or what the image says.

    Raises:
        InvalidError: neither says anything.
    """
    if given:
        return list(given)
    said = config.get("config")
    said = said if isinstance(said, dict) else {}
    words = [word for key in ("Entrypoint", "Cmd") for word in said.get(key) or ()]
    if not words:
        raise InvalidError("the image does not say what to run: give a command behind --")
    return [str(word) for word in words]


def runtime_config(config: Mapping[str, Any], command: Sequence[str], root: Path) -> dict[str, Any]:
    """The ``config.json`` of a container on `root` that runs `command` with the environment, directory and user of `config`.

    A user that is given by name is run as root: what it reads is the same, and its number is known to the image alone.
    """
    said = config.get("config")
    said = said if isinstance(said, dict) else {}
    user, _, group = str(said.get("User") or "0").partition(":")
    environment = [str(entry) for entry in said.get("Env") or ()]
    if not any(entry.startswith("PATH=") for entry in environment):
        environment.insert(0, _PATH)
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": int(user) if user.isdigit() else 0, "gid": int(group) if group.isdigit() else 0},
            "args": list(command),
            "env": environment,
            "cwd": str(said.get("WorkingDir") or "/"),
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _CAPABILITIES),
            "noNewPrivileges": True,
        },
        "root": {"path": str(root), "readonly": False},
        "hostname": "puzzlefs-optimize",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
            },
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev"]},  # noqa: S108
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]},
    }
