"""What can be seen of a directory tree, in a form that two trees can be compared by."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Seen:
    """One name of a tree. `size` and `content` are None where a file system may choose (directories) or there is none.

    `content` is the sha256 of a regular file, the target of a symlink, or the error number that reading gave. `twins` are the
    other names with the same inode, so that hard links compare by what they join.
    """

    mode: int
    uid: int
    gid: int
    size: int | None
    links: int
    device: int
    mtime_ns: int
    xattrs: tuple[tuple[str, bytes], ...]
    content: bytes | int | None
    twins: tuple[bytes, ...] = ()


def look(root: bytes) -> dict[bytes, Seen]:
    """Everything at and below `root`, by path relative to it (``b"."`` for itself); what is mounted there is left out."""
    seen: dict[bytes, Seen] = {}
    names: dict[tuple[int, int], list[bytes]] = {}
    device = os.stat(root).st_dev
    pending = [b"."]
    while pending:
        name = pending.pop()
        path = os.path.join(root, name)
        status = os.lstat(path)
        # of an overlay, directories alone have its device number; files may have their layer's
        if stat.S_ISDIR(status.st_mode) and status.st_dev != device:
            continue
        seen[name] = _look(path, status)
        if stat.S_ISDIR(status.st_mode):
            pending += [os.path.normpath(os.path.join(name, entry)) for entry in os.listdir(path)]
        elif status.st_nlink > 1:
            names.setdefault((status.st_dev, status.st_ino), []).append(name)
    for group in names.values():
        for name in group:
            fields = {f: getattr(seen[name], f) for f in Seen.__slots__ if f != "twins"}
            seen[name] = Seen(**fields, twins=tuple(sorted(set(group) - {name})))
    return seen


def differences(expected: Mapping[bytes, Seen], found: Mapping[bytes, Seen], but_times: Collection[bytes] = ()) -> list[str]:
    """One line for everything that is not equal, `but_times` of some names; empty if the trees are."""
    lines = [f"missing: {name[-60:]!r}" for name in sorted(expected.keys() - found.keys())]
    lines += [f"unexpected: {name[-60:]!r}" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        for field in Seen.__slots__:
            want, have = getattr(expected[name], field), getattr(found[name], field)
            if want != have and not (field == "mtime_ns" and name in but_times):
                lines.append(f"{name[-60:]!r}: {field} is {_show(field, have)}, expected {_show(field, want)}")
    return lines


def _show(field: str, value: object) -> str:
    return oct(value) if field == "mode" and isinstance(value, int) else repr(value)[:160]


def _look(path: bytes, status: os.stat_result) -> Seen:
    kind = stat.S_IFMT(status.st_mode)
    content: bytes | int | None = None
    if kind == stat.S_IFLNK:
        content = os.readlink(path)
    elif kind == stat.S_IFREG:
        content = _content(path)
    xattrs = tuple(
        (key, os.getxattr(path, key, follow_symlinks=False)) for key in sorted(os.listxattr(path, follow_symlinks=False))
    )
    return Seen(
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        size=None if kind == stat.S_IFDIR else status.st_size,
        links=status.st_nlink,
        device=status.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
        mtime_ns=status.st_mtime_ns,
        xattrs=xattrs,
        content=content,
    )


def _content(path: bytes) -> bytes | int:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        return error.errno or -1
    return digest.digest()


def sha256(data: bytes) -> bytes:
    """What `Seen.content` is for a file that holds `data`."""
    return hashlib.sha256(data).digest()
