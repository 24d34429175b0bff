"""The layers that the system tests run on: a small program that runs anywhere, and every oddity that a layer may hold."""

from __future__ import annotations

import random
import struct
from pathlib import Path

from tests.support import load, tools
from tests.support.images import SECOND, Layer

EPOCH = 1_700_000_000 * SECOND

CAP_NET_RAW = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
"""``setcap cap_net_raw+ep`` as an xattr (struct vfs_cap_data of linux/capability.h, revision 2, effective)."""

ACL_USER_33 = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, identity)
    for tag, permissions, identity in [
        (0x01, 6, 0xFFFFFFFF),
        (0x02, 4, 33),
        (0x04, 4, 0xFFFFFFFF),
        (0x10, 4, 0xFFFFFFFF),
        (0x20, 0, 0xFFFFFFFF),
    ]
)
"""``u::rw- u:33:r-- g::r-- m::r-- o::---`` as an xattr (linux/posix_acl_xattr.h)."""


def noise(size: int, seed: int) -> bytes:
    """Bytes that do not compress, the same for the same seed."""
    return random.Random(seed).randbytes(size)


def base() -> Layer:
    """The lowest layer of every sample: a static busybox, and the directories that a container's runtime mounts on."""
    layer = Layer()
    layer.directory(b"./")
    for name in (b"bin", b"dev", b"etc", b"proc", b"run", b"sys", b"tmp", b"usr", b"var"):
        layer.directory(name)
    layer.file(b"bin/busybox", Path(tools.find("busybox")).read_bytes(), 0o755)
    layer.symlink(b"bin/sh", b"busybox")
    return layer


def plain() -> list[bytes]:
    """Layers without surprises: a program, data in files of several sizes (``data/NAME``), one more file (``more/file``)."""
    data = Layer()
    data.directory(b"data")
    data.file(b"data/hello", b"hello from a layer\n")
    data.file(b"data/first", noise(300_000, 1))
    data.file(b"data/second", noise(300_000, 2))
    data.file(b"data/zeros", bytes(1_000_000))
    more = Layer()
    more.directory(b"more")
    more.file(b"more/file", noise(300_000, 6))
    return [base().tar(), data.tar(), more.tar()]


def odd() -> list[bytes]:
    """Three layers with whiteouts, opaque directories, links, xattrs, devices and names of every kind."""
    return [_odd_base(), _odd_changes(), _odd_changes_again()]


def _odd_base() -> bytes:
    layer = base()
    layer.directory(b"kinds", 0o2755, owner=(0, 50), mtime=EPOCH + 123_456_789)
    layer.file(b"kinds/setuid", b"#!/bin/sh\n", 0o4755, mtime=EPOCH + 1)
    layer.file(b"kinds/setgid", b"#!/bin/sh\n", 0o2755, owner=(1000, 1000))
    layer.file(b"kinds/empty", b"")
    layer.file(b"kinds/unreadable", b"secret", 0o000)
    layer.file(b"kinds/large", noise(3_000_000, 3) + bytes(200_000) + b"the end", mtime=EPOCH + 999_999_999)
    layer.file(b"kinds/owner", b"x", owner=(2_000_000_000, 2_000_000_001))
    layer.fifo(b"kinds/fifo", 0o640, mtime=EPOCH + 5)
    layer.character_device(b"kinds/null", (1, 3), 0o666)
    layer.character_device(b"kinds/large-numbers", (259, 70_000))
    layer.block_device(b"kinds/loop", (7, 0), owner=(0, 6))
    layer.directory(b"kinds/sticky", 0o1777)
    layer.symlink(b"kinds/dangling", b"/nowhere/\xff", owner=(5, 6), mtime=EPOCH + 42)
    layer.symlink(b"kinds/long", b"t/" * 2000)

    layer.directory(b"times")
    for name, time in (
        (b"past", -1_500_000_000),
        (b"zero", 0),
        (b"2128", 5_000_000_000 * SECOND + 7),
        (b"last", EPOCH + 999_999_999),
    ):
        layer.file(b"times/" + name, name, mtime=time)

    layer.directory(b"links")
    layer.file(b"links/one", noise(50_000, 4), 0o600, mtime=EPOCH + 77, xattrs={"user.shared": b"by three names"})
    layer.hardlink(b"links/two", b"links/one")
    layer.directory(b"links/below")
    layer.hardlink(b"links/below/three", b"links/one")
    layer.file(b"links/a", b"twice")
    layer.hardlink(b"links/b", b"links/a")
    layer.symlink(b"links/symlink", b"one")
    layer.hardlink(b"links/symlink-too", b"links/symlink")
    layer.fifo(b"links/fifo")
    layer.hardlink(b"links/fifo-too", b"links/fifo")

    layer.directory(b"xattrs", xattrs={"user.on-directory": b"\x00\xff\n=", "trusted.ours": b"root's"})
    layer.file(b"xattrs/ping", b"\x7fELF", 0o755, xattrs={"security.capability": CAP_NET_RAW})
    layer.file(b"xattrs/many", b"", xattrs={f"user.{n:02}": noise(n, n) for n in range(1, 40)})
    layer.file(b"xattrs/empty-value", b"", xattrs={"user.empty": b""})
    layer.file(b"xattrs/large", b"", xattrs={"user.large": noise(2000, 5)})
    layer.file(b"xattrs/acl", b"acl", 0o640, xattrs={"system.posix_acl_access": ACL_USER_33})

    layer.directory(b"names")
    for name in (
        b"new\nline",
        b"tab\tcontrol\x01\x7f",
        b"\xff\xfe not UTF-8",
        b"x" * 255,
        b"\xe9" * 255,
        b"spaces  'quotes\" and \\backslash",
        b"-dash",
        b"caf\xc3\xa9",
        b"cafe\xcc\x81",
        b".whatever",
        b"..double",
        b"...",
        b"percent%2fslash",
        b"comma,colon:equals=",
    ):
        layer.file(b"names/" + name, name)
        layer.directory(b"names/d" + name[:254])
        layer.file(b"names/d" + name[:254] + b"/below", b"")
    path = b"deep"
    for level in range(60):
        path += b"/" + f"{level:02}-".encode() + b"n" * 47
    for end in range(4, len(path) + 1):
        if end == len(path) or path[end : end + 1] == b"/":
            layer.directory(path[:end])
    layer.file(path + b"/bottom", b"far down")

    # what the next layers hide, replace or extend
    layer.directory(b"change", 0o700, owner=(10, 20), mtime=EPOCH + 3, xattrs={"user.kept": b"yes"})
    for name in (b"gone", b"gone-and-back", b"file-to-directory", b"file-to-symlink", b"replaced", b"stays"):
        layer.file(b"change/" + name, b"lower " + name)
    layer.directory(b"change/directory-to-file")
    layer.file(b"change/directory-to-file/inside", b"")
    for name in (b"change/removed-tree", b"change/removed-and-back"):
        layer.directory(name)
        layer.directory(name + b"/sub")
        layer.file(name + b"/sub/file", b"lower")
    for name in (b"opaque-first", b"opaque-last", b"opaque-then-more"):
        layer.directory(name)
        layer.file(name + b"/hidden", b"lower")
        layer.directory(name + b"/sub")
        layer.file(name + b"/sub/hidden-too", b"lower")
    layer.directory(b"implicit", 0o711, owner=(33, 34), mtime=EPOCH + 9, xattrs={"user.parent": b"kept"})
    layer.directory(b"implicit/deeper", 0o1750, owner=(35, 36))
    layer.file(b"implicit/deeper/gone", b"")
    layer.file(b"implicit/deeper/stays", b"")
    layer.directory(b"mode-only", 0o755)
    layer.file(b"mode-only/kept", b"kept")
    return layer.tar()


def _odd_changes() -> bytes:
    layer = Layer()
    layer.directory(b"change", 0o711, owner=(11, 21), mtime=EPOCH + 4)
    for name in (b"gone", b"gone-and-back", b"removed-tree", b"removed-and-back", b"never-was"):
        layer.whiteout(b"change/" + name)
    layer.directory(b"change/file-to-directory", 0o750)
    layer.file(b"change/file-to-directory/inside", b"upper")
    layer.symlink(b"change/file-to-symlink", b"stays")
    layer.file(b"change/directory-to-file", b"now a file")
    layer.file(b"change/replaced", b"upper, and longer than before", 0o600, mtime=EPOCH + 6)
    layer.directory(b"links")
    layer.whiteout(b"links/two")
    layer.file(b"links/new", b"of the second layer")
    layer.hardlink(b"links/new-too", b"links/new")

    layer.directory(b"opaque-first", 0o755, mtime=EPOCH + 11)
    layer.opaque(b"opaque-first")
    layer.file(b"opaque-first/new", b"upper")
    layer.directory(b"opaque-first/sub")
    layer.directory(b"opaque-last", 0o755, mtime=EPOCH + 12)
    layer.file(b"opaque-last/new", b"upper")
    layer.directory(b"opaque-last/sub")
    layer.file(b"opaque-last/sub/new", b"upper")
    layer.opaque(b"opaque-last")
    layer.directory(b"opaque-then-more")
    layer.opaque(b"opaque-then-more")

    # the parents of these have no entry here: they stay as the layer below has them
    layer.whiteout(b"implicit/deeper/gone")
    layer.file(b"implicit/deeper/new", b"upper")
    layer.directory(b"mode-only", 0o700, owner=(7, 7), mtime=EPOCH + 13)
    return layer.tar()


def _odd_changes_again() -> bytes:
    layer = Layer()
    layer.directory(b"./", 0o755, mtime=EPOCH + 14)
    layer.directory(b"change", 0o755, mtime=EPOCH + 15)
    layer.file(b"change/gone-and-back", b"back")
    layer.directory(b"change/removed-and-back")
    layer.directory(b"change/removed-and-back/sub")
    layer.file(b"change/removed-and-back/sub/other", b"")
    layer.whiteout(b"change/file-to-directory")
    layer.directory(b"opaque-then-more", 0o755, mtime=EPOCH + 16)
    layer.file(b"opaque-then-more/third", b"of the third layer")
    layer.directory(b"opaque-then-more/sub")
    layer.directory(b"links")
    layer.whiteout(b"links/new")
    layer.directory(b"empty", mtime=EPOCH + 17)
    return layer.tar()


def loaded() -> list[bytes]:
    """The files that `load` reads, in ``load/``, in two layers that share its directories."""
    layers = []
    for half in (0, 1):
        layer = Layer()
        layer.directory(b"load")
        for number in range(7):
            layer.directory(f"load/d{number}".encode())
        for number in range(half, load.FILES, 2):
            layer.file(f"load/{load.path(number)}".encode(), load.content(number))
        layers.append(layer.tar())
    return [base().tar(), *layers]
