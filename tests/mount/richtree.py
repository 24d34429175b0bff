"""A directory tree with one of everything that a file system can hold."""

from __future__ import annotations

import os
import random
import stat
import struct
from pathlib import Path

MANY = 20_000
BIG = 5_000_003
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
"""``security.capability``: cap_net_bind_service, permitted and effective (struct vfs_cap_data)."""
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, ident)
    for tag, permissions, ident in [
        (1, 6, 0xFFFFFFFF),
        (2, 4, 1234),
        (4, 4, 0xFFFFFFFF),
        (16, 4, 0xFFFFFFFF),
        (32, 0, 0xFFFFFFFF),
    ]
)
"""``system.posix_acl_access``: rw for the owner, r for user 1234 and the group, nothing for others."""


def make_tree(root: Path) -> None:
    """Make the tree in the new directory `root`."""
    made = random.Random(7)
    root.mkdir()
    (root / "empty").touch()
    (root / "one byte").write_bytes(b"x")
    (root / "text").write_text("hello\n")
    (root / "big").write_bytes(made.randbytes(BIG))
    (root / "page border").write_bytes(made.randbytes(4096 * 25))
    with open(root / "sparse", "wb") as file:
        file.seek(3_000_000)
        file.write(b"end")
    _odd_names(root / "names")
    _special(root / "special")
    _links(root / "links")
    _xattrs(root / "xattrs")
    deep = root / "deep"
    for level in range(40):
        deep = deep / f"level {level}"
    deep.mkdir(parents=True)
    (deep / "bottom").write_text("far down")
    many = root / "many"
    many.mkdir()
    for number in range(MANY):
        (many / f"entry-{number:05}").touch()
    (root / "no entries").mkdir()
    _modes_and_times(root / "modes")


def _odd_names(directory: Path) -> None:
    base = os.fsencode(directory)
    os.mkdir(base)
    for name in (
        b"new\nline",
        b"\xff\xfe not utf-8",
        b"n" * 255,
        b" ",
        b"-rf",
        b"*?[]",
        "ä日本".encode(),
        b"\\",
        b"...",
        b"a\tb",
    ):
        with open(base + b"/" + name, "wb") as file:
            file.write(name)


def _special(directory: Path) -> None:
    directory.mkdir()
    os.mkfifo(directory / "fifo", 0o640)
    os.mknod(directory / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(directory / "loop", stat.S_IFBLK | 0o660, os.makedev(7, 300_000))
    os.mknod(directory / "socket", stat.S_IFSOCK | 0o755)


def _links(directory: Path) -> None:
    directory.mkdir()
    (directory / "sub").mkdir()
    (directory / "a").write_text("shared")
    os.link(directory / "a", directory / "b")
    os.link(directory / "a", directory / "sub" / "c")
    os.symlink("a", directory / "soft")
    os.link(directory / "soft", directory / "soft too", follow_symlinks=False)
    os.symlink("nowhere", directory / "dangling")
    os.symlink("t" * 4095, directory / "longest")
    os.symlink("/", directory / "absolute")


def _xattrs(directory: Path) -> None:
    directory.mkdir()
    program = directory / "program"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    os.setxattr(program, "security.capability", CAPABILITY)
    file = directory / "file"
    file.write_text("with attributes")
    os.setxattr(file, "user.text", b"value")
    os.setxattr(file, "user.empty", b"")
    os.setxattr(file, "user.binary", bytes(range(256)))
    os.setxattr(file, "trusted.secret", b"\0")
    os.setxattr(file, "user.long", b"v" * 3000)
    os.symlink("file", directory / "link")
    os.setxattr(directory / "link", "trusted.on-link", b"1", follow_symlinks=False)
    acl = directory / "acl"
    acl.write_text("for 1234")
    os.chown(acl, 1, 1)
    os.setxattr(acl, "system.posix_acl_access", ACL)


def _modes_and_times(directory: Path) -> None:
    directory.mkdir()
    for mode in (0o000, 0o400, 0o644, 0o1777, 0o2755, 0o4755, 0o7777):
        path = directory / f"{mode:o}"
        path.touch()
        os.chown(path, 1000 + mode, 70_000)
        path.chmod(mode)
    for number, nanoseconds in enumerate(
        (0, 1, 999_999_999, 1_700_000_000_123_456_789, -1, -5_000_000_001, 4_102_444_800_000_000_007)
    ):
        path = directory / f"time {number}"
        path.touch()
        os.utime(path, ns=(nanoseconds, nanoseconds))
    (directory / "directory").mkdir(mode=0o2750)
    os.utime(directory / "directory", ns=(0, 1_234_567_890_987_654_321))
