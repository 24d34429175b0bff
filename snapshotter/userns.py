"""Which user namespace this process is in (user_namespaces(7)): what the kernel lets it do, and shows it, depends on that."""

from __future__ import annotations

import functools
from pathlib import Path

UID_MAP = Path("/proc/self/uid_map")
OVERFLOW_UID = Path("/proc/sys/kernel/overflowuid")

_ALL = (0, 0, (1 << 32) - 1)
"""The initial namespace's only line of uid_map: every user is itself."""


@functools.cache
def is_initial(uid_map: Path = UID_MAP) -> bool:
    """Whether this is the machine's own user namespace, or another in which all users are themselves."""
    lines = [tuple(map(int, line.split())) for line in uid_map.read_text(encoding="ascii").splitlines()]
    return lines == [_ALL]


@functools.cache
def overlay_prefix() -> bytes:
    """How the names begin by which overlayfs is given orders.

    ``trusted.`` attributes are the initial user namespace's. An overlay that is mounted in another one takes ``user.`` ones,
    and those only (Linux, filesystems/overlayfs.rst, option ``userxattr``). An overlay hides the kind that it takes, and shows
    the other as the layer's own: so a layer has one of them.
    """
    return b"trusted.overlay." if is_initial() else b"user.overlay."


@functools.cache
def outsider() -> int | None:
    """The user that files seem to have whose owner, root for one, is not in this user namespace; None in the initial one."""
    return None if is_initial() else int(OVERFLOW_UID.read_text(encoding="ascii"))
