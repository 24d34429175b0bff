"""Shows a directory in another place with other owners: a mount that maps users (MOUNT_ATTR_IDMAP, mount_setattr(2))."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from snapshotter.errors import FailedPreconditionError, UnavailableError, UnsupportedError

# Numbers of system calls; from 5.0 on they are the same on every architecture (Linux, scripts/syscall.tbl).
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_IDMAP = 1, 0x00100000

_HOLDER = """
import ctypes, sys
CLONE_NEWUSER = 0x10000000
if ctypes.CDLL(None).unshare(CLONE_NEWUSER):
    sys.exit(1)
print("made", flush=True)
sys.stdin.read()
"""
"""A program that makes a user namespace, says so, and stays until its standard input ends."""

_libc = ctypes.CDLL(None, use_errno=True)

Ranges = Sequence[tuple[int, int, int]]
"""First number inside, first one outside, how many (``/proc/[pid]/uid_map``, user_namespaces(7))."""


class _MountAttr(ctypes.Structure):
    """``struct mount_attr`` (linux/mount.h)."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


@contextlib.contextmanager
def user_namespace(uids: Ranges, gids: Ranges) -> Iterator[int]:
    """A descriptor of a user namespace with these users and groups, for `show`.

    A process of its own makes it: one with threads cannot (unshare(2)), nor can it be made without one.

    Raises:
        FailedPreconditionError: the kernel does not let us.
        UnavailableError: no process can be started.
    """
    command = [sys.executable, "-I", "-S", "-c", _HOLDER]
    try:
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError as error:
        raise UnavailableError(f"no process for a user namespace can be started: {error}") from error
    with holder:
        try:
            assert holder.stdout is not None  # noqa: S101 - it was asked for
            if not holder.stdout.readline():
                limit = "/proc/sys/user/max_user_namespaces"
                raise FailedPreconditionError(f"the kernel makes no user namespace: see {limit}, and what restricts them")
            for name, ranges in (("uid_map", uids), ("gid_map", gids)):
                text = "".join(f"{inside} {outside} {size}\n" for inside, outside, size in ranges)
                Path(f"/proc/{holder.pid}/{name}").write_text(text, encoding="ascii")
            namespace = os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise FailedPreconditionError(f"the kernel refuses the users of a container ({uids}, {gids}): {error}") from error
        finally:
            holder.kill()
    try:
        yield namespace
    finally:
        os.close(namespace)


def show(directory: Path, place: Path, namespace: int) -> None:
    """Mount `directory`, what is mounted below it left out, on `place`: read-only, its owners as in the user namespace.

    Raises:
        UnsupportedError: the kernel, or its driver of that file system, cannot do it (FUSE's can from Linux 6.12 on).
        FailedPreconditionError: it is not allowed.
        UnavailableError: it fails for another reason.
    """
    what = f"showing {directory} on {place} with a container's owners"
    tree = _call(what, _OPEN_TREE, _AT_FDCWD, os.fsencode(directory), _OPEN_TREE_CLONE | os.O_CLOEXEC)
    try:
        attributes = _MountAttr(_MOUNT_ATTR_IDMAP | _MOUNT_ATTR_RDONLY, 0, 0, namespace)
        size = ctypes.sizeof(attributes)
        _call(what, _MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(attributes), size)
        _call(what, _MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(place), _MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(tree)


def _call(what: str, number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result >= 0:
        return result
    code = ctypes.get_errno()
    message = f"{what}: {os.strerror(code)}"
    if code in (errno.EINVAL, errno.ENOSYS):
        raise UnsupportedError(f"{message}: Linux 6.12 can for lazy layers, and the file system below the root must, too")
    if code in (errno.EPERM, errno.EACCES):
        raise FailedPreconditionError(message)
    raise UnavailableError(message)
