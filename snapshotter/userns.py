"""Which user namespace this process is in (user_namespaces(7)): what the kernel lets it do, and shows it, depends on that."""

from __future__ import annotations

import functools
import os
from pathlib import Path

NAMESPACE = Path("/proc/self/ns/user")
UID_MAP = Path("/proc/self/uid_map")
OVERFLOW_UID = Path("/proc/sys/kernel/overflowuid")

TRUSTED_OVERLAY = b"trusted.overlay."
"""How the names of overlayfs' attributes begin in the initial user namespace, which alone has ``trusted.`` ones."""
USER_OVERLAY = b"user.overlay."
"""And in all others."""

_INITIAL = 0xEFFFFFFD
"""The initial namespace's inode number (Linux, include/linux/proc_ns.h: ``PROC_USER_INIT_INO``); no other gets it."""
_ALL = (1 << 32) - 1
"""As many users as there are: the last number means none."""


@functools.cache
def is_initial(namespace: Path = NAMESPACE) -> bool:
    """Whether this is the machine's own user namespace. Another may have the same users, and yet not the same rights."""
    try:
        return namespace.stat().st_ino == _INITIAL
    except FileNotFoundError:  # a kernel that has no others
        return True


def is_root() -> bool:
    """Whether this process is the machine's root; not a user, nor root of a user's namespace."""
    return os.geteuid() == 0 and is_initial()


def overlay_prefix() -> bytes:
    """How the names begin by which overlayfs is given orders.

    ``trusted.`` attributes are the initial user namespace's. An overlay that is mounted in another one takes ``user.`` ones,
    and those only (Linux, filesystems/overlayfs.rst, option ``userxattr``). An overlay hides the kind that it takes, and shows
    the other as the layer's own: so a layer has one of them.
    """
    return TRUSTED_OVERLAY if is_initial() else USER_OVERLAY


@functools.cache
def outsider(uid_map: Path = UID_MAP) -> int | None:
    """The user that files seem to have whose owner, root for one, is not in this user namespace; None if all users are."""
    users = sum(int(line.split()[2]) for line in uid_map.read_text(encoding="ascii").splitlines())
    return None if users >= _ALL else int(OVERFLOW_UID.read_text(encoding="ascii"))
