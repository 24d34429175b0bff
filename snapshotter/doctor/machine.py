"""Looks at the kernel, the daemon's files, processes and mounts."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snapshotter import userns
from snapshotter.daemon import statusclient
from snapshotter.daemon.config import Config
from snapshotter.doctor import kernel, service
from snapshotter.errors import PuzzlefsError
from snapshotter.mount import mounting, wire

INIT_TIMEOUT = 5.0
"""Seconds in which the kernel sends INIT; it does so while mount(2) returns."""
COMMAND_TIMEOUT = 20.0

_FS_IOC_MEASURE_VERITY = 0xC0046686
_SO_PEERCRED_SIZE = 12


def kernel_facts(root: Path) -> kernel.KernelFacts:
    """What the kernel offers; `root` is the snapshotter's."""
    device, init = _fuse()
    cache_fs, verity = _verity(root)
    return kernel.KernelFacts(
        release=os.uname().release,
        fuse_device=device,
        init=init,
        overlay=_knows("overlay"),
        redirect_dir=_parameter("/sys/module/overlay/parameters/redirect_dir"),
        verity=verity,
        cache_fs=cache_fs,
    )


def _fuse() -> tuple[str, wire.InitIn | None]:
    """Why /dev/fuse cannot be used, and what the kernel offers in INIT: asked with a mount that is gone at once."""
    try:
        fd = mounting.open_fuse()
    except PuzzlefsError as error:
        return str(error), None
    try:
        if os.geteuid() != 0:
            return "", None
        with tempfile.TemporaryDirectory(prefix="puzzlefs-doctor-") as directory:
            try:
                mounting.mount(fd, Path(directory), "puzzlefs-doctor")
            except PuzzlefsError as error:
                return str(error), None
            try:
                return "", _init(fd)
            finally:
                mounting.unmount(Path(directory))
    finally:
        os.close(fd)


def _init(fd: int) -> wire.InitIn | None:
    if not select.select([fd], [], [], INIT_TIMEOUT)[0]:
        return None
    return wire.parse_init(wire.parse_request(memoryview(os.read(fd, wire.BUFFER_SIZE))))


def _knows(file_system: str) -> bool:
    with contextlib.suppress(OSError):
        if file_system in Path("/proc/filesystems").read_text().split():
            return True
    # Not loaded yet: whether it could be.
    with contextlib.suppress(OSError):
        return f"/{file_system}.ko" in Path(f"/lib/modules/{os.uname().release}/modules.dep").read_text()
    return False


def _parameter(path: str) -> bool | None:
    with contextlib.suppress(OSError):
        return Path(path).read_text().strip() == "Y"
    return None


def _verity(root: Path) -> tuple[str, bool | None]:
    """The type of the file system of `root`, and whether it knows fs-verity: to measure a directory that is not sealed is
    ENODATA there, EOPNOTSUPP or ENOTTY elsewhere (Documentation/filesystems/fsverity.rst)."""
    place = root
    while not place.exists() and place != place.parent:
        place = place.parent
    fs_type = _file_system(place)
    try:
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return fs_type, None
    try:
        fcntl.ioctl(fd, _FS_IOC_MEASURE_VERITY, struct.pack("=HH32x", 0, 32))
    except OSError as error:
        return fs_type, error.errno == errno.ENODATA
    finally:
        os.close(fd)
    return fs_type, True


def _file_system(place: Path) -> str:
    device = os.stat(place).st_dev
    numbers = f"{os.major(device)}:{os.minor(device)}"
    return next((info.fs_type for info in mounting.mounts() if info.device == numbers), "unknown file system")


def service_facts(config: Config | None, config_error: str, config_path: Path, containerd_pid: int) -> service.ServiceFacts:
    """What is to be seen of the daemon; `config_error` is why there is no `config`."""
    if config is None:
        return service.ServiceFacts(None, config_error)
    size = free = 0
    with contextlib.suppress(OSError):
        figures = os.statvfs(config.root)
        size, free = figures.f_blocks * figures.f_frsize, figures.f_bavail * figures.f_frsize
    daemon_pid, refused = peer(config.address)
    return service.ServiceFacts(
        config=config,
        config_file=_path(config_path),
        root=_path(config.root),
        ancestors=[_path(above) for above in config.root.parents],
        socket=_path(config.address),
        socket_refused=refused,
        unit=_unit(),
        size=size,
        free=free,
        namespaces=(_mount_namespace(daemon_pid), _mount_namespace(containerd_pid)),
        shared=_is_shared(config.root),
        waiting=_waiting(config.root),
        status=None if refused else _status(config.address),
    )


def _path(path: Path) -> service.PathFacts:
    try:
        status = path.lstat()
    except OSError as error:
        return service.PathFacts(str(path), error=error.strerror or str(error))
    return service.PathFacts(str(path), status.st_mode, status.st_uid)


def peer(address: Path) -> tuple[int, str]:
    """The process that listens at a Unix socket (0: unknown), and why it takes no connection (empty if it does)."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(3.0)
        try:
            probe.connect(str(address))
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _SO_PEERCRED_SIZE)
        except OSError as error:
            return 0, error.strerror or str(error)
    return struct.unpack("=iII", credentials)[0], ""


def _unit() -> dict[str, str] | None:
    """The properties of root's daemon's unit; None for a user, and where systemd does not run this machine (sd_booted(3))."""
    if not userns.is_root() or not Path("/run/systemd/system").is_dir():
        return None
    properties = "LoadState,ActiveState,UnitFileState,KillMode,FileDescriptorStoreMax"
    words = ["systemctl", "show", "puzzlefs-snapshotter.service", f"--property={properties}"]
    shown = output(words)
    return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)


def _mount_namespace(pid: int) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/mnt") if pid else ""
    return ""


def _is_shared(root: Path) -> bool:
    """Whether the mount that `root` lies in is shared or gets what others mount (proc_pid_mountinfo(5), optional fields)."""
    found, shared = "", False
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        info = mounting.parse_mountinfo(line)
        if info is not None and root.is_relative_to(info.mountpoint) and len(str(info.mountpoint)) >= len(found):
            found, shared = str(info.mountpoint), b" shared:" in line.partition(b" - ")[0]
    return shared


def _status(address: Path) -> Mapping[str, Any] | None:
    with contextlib.suppress(PuzzlefsError):
        return statusclient.status(address)
    return None


def _waiting(root: Path) -> dict[str, int]:
    """For every mount of ours below `root`, the requests that wait for an answer; no mount is touched for that."""
    counts = {}
    for info in mounting.our_mounts(root):
        minor = info.device.partition(":")[2]
        counts[str(info.mountpoint)] = 0
        with contextlib.suppress(OSError, ValueError):
            counts[str(info.mountpoint)] = int(Path(f"/sys/fs/fuse/connections/{minor}/waiting").read_text())
    return counts


def output(words: list[str]) -> str:
    """What a program printed; nothing where it failed."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            words, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_TIMEOUT
        )
        return done.stdout if done.returncode == 0 else ""
    return ""
