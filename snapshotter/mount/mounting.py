"""mount(2), umount2(2) and the table of mounts. Needs CAP_SYS_ADMIN; the unprivileged way is ``libfuse``."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from snapshotter import userns
from snapshotter.errors import FailedPreconditionError, NotFoundError, PuzzlefsError, UnsupportedError
from snapshotter.mount.wire import READ_AHEAD_MAX, READ_MAX

FUSE_DEVICE = "/dev/fuse"
FS_TYPE = "fuse.puzzlefs"

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_log = logging.getLogger(__name__)


class MountInfo(NamedTuple):
    """A line of /proc/self/mountinfo (proc_pid_mountinfo(5)): `device` is ``major:minor``."""

    device: str
    mountpoint: Path
    fs_type: str
    source: str


def open_fuse() -> int:
    """A new FUSE connection: a descriptor that belongs to one mount, the caller's to close.

    Raises:
        UnsupportedError: the kernel has no FUSE.
        FailedPreconditionError: it may not be opened.
    """
    try:
        return os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            raise UnsupportedError(f"{FUSE_DEVICE}: {error.strerror}: load the kernel's fuse module") from error
        raise FailedPreconditionError(f"{FUSE_DEVICE}: {error.strerror}: run as root, or allow this device") from error


def mount(fd: int, mountpoint: Path, source: str, flags: int = MS_RDONLY) -> None:
    """Mount the connection `fd` on `mountpoint`, and let it read ahead by `READ_AHEAD_MAX`.

    Without MS_RDONLY the kernel passes attempts to change something on to the server, which refuses them all.

    The mount answers nobody before a server answers INIT: do not look into it until then. It is neither nosuid nor nodev: the
    layer's set-user-ID programs and devices must work in containers, and only root gets at the mountpoint itself.

    Raises:
        NotFoundError: there is no such mountpoint.
        FailedPreconditionError: mount(2) is not allowed.
        UnsupportedError: the kernel refuses it for another reason.
    """
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read={READ_MAX}"
    result = _libc.mount(source.encode(), os.fsencode(mountpoint), FS_TYPE.encode(), flags, options.encode())
    if result != 0:
        raise _failure(ctypes.get_errno(), f"mounting {source} on {mountpoint}")
    raise_read_ahead(mountpoint)


def unmount(mountpoint: Path) -> None:
    """Take the topmost mount off `mountpoint`, at once; it ends when its last user does (MNT_DETACH).

    Raises:
        NotFoundError: nothing is mounted there.
        FailedPreconditionError: it is not allowed.
    """
    if _libc.umount2(os.fsencode(mountpoint), _MNT_DETACH) != 0:
        number = ctypes.get_errno()
        if number == errno.EINVAL:  # "target is not a mount point" (umount(2))
            raise NotFoundError(f"unmounting {mountpoint}: nothing is mounted there")
        raise _failure(number, f"unmounting {mountpoint}")


PAGE = 4096
"""Least that the kernel can be told to read ahead, in bytes."""


def set_read_ahead(mountpoint: Path, size: int) -> bool:
    """Have the kernel read `size` bytes ahead in files of the mount that are opened from now on; whether it could be told.

    It is a property of the mount's backing device (Documentation/ABI/testing/sysfs-class-bdi), which a file takes over when it
    is opened (``file_ra_state_init``).
    """
    info = find(mountpoint)
    if info is None:
        return False
    try:
        Path(f"/sys/class/bdi/{info.device}/read_ahead_kb").write_text(str(max(size, PAGE) // 1024))
    except OSError as error:
        level = logging.WARNING if userns.is_initial() else logging.DEBUG  # in a user namespace nobody may
        _log.log(level, "read-ahead of %s stays as it is: %s", mountpoint, error)
        return False
    return True


def raise_read_ahead(mountpoint: Path) -> bool:
    """Set the read-ahead of the mount to `READ_AHEAD_MAX`. False, and a line in the log, where /sys does not let us.

    The kernel's default of 128 KiB makes eight requests out of each MiB that is read in order. INIT can only lower it.
    """
    return set_read_ahead(mountpoint, READ_AHEAD_MAX)


def mounts() -> Iterator[MountInfo]:
    """All mounts that this process sees, in the order in which they were made."""
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        info = parse_mountinfo(line)
        if info is not None:
            yield info


def our_mounts(under: Path) -> list[MountInfo]:
    """The mounts of this file system under the directory `under`."""
    return [info for info in mounts() if info.fs_type == FS_TYPE and info.mountpoint.is_relative_to(under)]


def find(mountpoint: Path) -> MountInfo | None:
    """The topmost mount on `mountpoint`, without touching it; None if there is none."""
    wanted = Path(os.path.realpath(mountpoint.parent)) / mountpoint.name
    found = None
    for info in mounts():
        if info.mountpoint == wanted:
            found = info
    return found


def parse_mountinfo(line: bytes) -> MountInfo | None:
    """One line of mountinfo; None if it is none. Space, tab, newline and backslash are escaped as octal there."""
    left, separator, right = line.partition(b" - ")
    fields, rest = left.split(b" "), right.split(b" ")
    if not separator or len(fields) < 6 or len(rest) < 2:
        return None
    return MountInfo(
        fields[2].decode(),
        Path(os.fsdecode(_unescape(fields[4]))),
        rest[0].decode(errors="replace"),
        os.fsdecode(_unescape(rest[1])),
    )


def _unescape(field: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8) & 0xFF]), field)


def _failure(number: int, what: str) -> PuzzlefsError:
    message = f"{what}: {os.strerror(number)}"
    if number in (errno.ENOENT, errno.ENOTDIR):
        return NotFoundError(message)
    if number in (errno.EPERM, errno.EACCES, errno.EBUSY):
        return FailedPreconditionError(message + " (mounting needs root)" if number != errno.EBUSY else message)
    return UnsupportedError(message)
