"""Hypothesis strategies for whole trees, and what makes a tar of one."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import strategies as st

from tests.support.images import SECOND, Layer


@dataclass(frozen=True, slots=True)
class Item:
    """One name: a tarfile type, attributes, data or target, and for a hard link the path of the item it repeats."""

    path: bytes
    kind: bytes
    mode: int
    owner: tuple[int, int]
    mtime: int
    data: bytes = b""
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[str, bytes] = field(default_factory=dict)


_names = st.one_of(
    st.sampled_from([b"a", b"b", b"a-b", b"a.b", b"A", b"\xff\xfe", b"new\nline", b"n" * 255]),
    st.binary(min_size=1, max_size=12).filter(
        lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..") and not name.startswith(b".wh.")
    ),
)
_data = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda seed, count: seed * count, st.binary(min_size=1, max_size=40), st.integers(1, 400)),
)
_xattrs = st.dictionaries(st.sampled_from(["user.a", "user.b", "security.x"]), st.binary(max_size=20), max_size=3)
_kinds = st.sampled_from(
    [
        *[tarfile.DIRTYPE] * 2,
        *[tarfile.REGTYPE] * 3,
        *(tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.LNKTYPE),
    ]
)


@st.composite
def trees(draw: st.DrawFn, size: int = 14) -> list[Item]:
    """A tree as items, every directory before what is in it and every file before its hard links."""
    directories = [b""]
    items: dict[bytes, Item] = {}
    for _ in range(draw(st.integers(0, size))):
        parent = draw(st.sampled_from(directories))
        path = parent + draw(_names)
        if path in items or len(path) > 2000:
            continue
        kind = draw(_kinds)
        linkable = [item for item in items.values() if item.kind not in (tarfile.DIRTYPE, tarfile.LNKTYPE)]
        if kind == tarfile.LNKTYPE:
            if not linkable:
                continue
            first = draw(st.sampled_from(linkable))
            items[path] = Item(path, kind, first.mode, first.owner, first.mtime, link=first.path, xattrs=first.xattrs)
            continue
        items[path] = Item(
            path,
            kind,
            0o777 if kind == tarfile.SYMTYPE else draw(st.integers(0, 0o7777)),
            (draw(st.integers(0, 3)), draw(st.integers(0, 1 << 31))),
            draw(st.integers(0, 4_000_000_000 * SECOND)),
            data=draw(_data) if kind == tarfile.REGTYPE else b"",
            link=draw(st.binary(min_size=1, max_size=20).filter(lambda text: b"\0" not in text))
            if kind == tarfile.SYMTYPE
            else b"",
            device=(draw(st.integers(1, 4095)), draw(st.integers(0, (1 << 20) - 1)))
            if kind in (tarfile.CHRTYPE, tarfile.BLKTYPE)
            else (0, 0),
            xattrs=draw(_xattrs) if kind in (tarfile.REGTYPE, tarfile.DIRTYPE) else {},
        )
        if kind == tarfile.DIRTYPE:
            directories.append(path + b"/")
    return list(items.values())


def tar_of(items: Sequence[Item], root_mtime: int = SECOND) -> bytes:
    """The items as a layer, in their order."""
    layer = Layer()
    layer.directory(b"./", mtime=root_mtime)
    for item in items:
        layer.add(
            item.path,
            item.kind,
            item.mode,
            data=item.data,
            link=item.link,
            owner=item.owner,
            mtime=item.mtime,
            xattrs=item.xattrs,
            device=item.device,
        )
    return layer.tar()


def write(items: Sequence[Item], root: Path) -> None:
    """Make the tree on disk. Needs root."""
    root.mkdir()
    top = os.fsencode(root) + b"/"
    for item in items:
        path = top + item.path
        if item.kind == tarfile.LNKTYPE:
            os.link(top + item.link, path, follow_symlinks=False)
            continue
        if item.kind == tarfile.DIRTYPE:
            os.mkdir(path)
        elif item.kind == tarfile.SYMTYPE:
            os.symlink(item.link, path)
        elif item.kind == tarfile.REGTYPE:
            with open(path, "xb") as file:
                file.write(item.data)
        else:
            os.mknod(path, _NODES[item.kind] | 0o600, os.makedev(*item.device))
        os.chown(path, *item.owner, follow_symlinks=False)
        for key, value in item.xattrs.items():
            os.setxattr(path, key, value)
        if item.kind != tarfile.SYMTYPE:
            os.chmod(path, item.mode)


_NODES = {tarfile.FIFOTYPE: stat.S_IFIFO, tarfile.CHRTYPE: stat.S_IFCHR, tarfile.BLKTYPE: stat.S_IFBLK}


@st.composite
def reordered(draw: st.DrawFn, items: Sequence[Item]) -> list[Item]:
    """The same tree in another order that a tar may have: links after what they link to, directories anywhere."""
    plain = draw(st.permutations([item for item in items if item.kind != tarfile.LNKTYPE]))
    links = draw(st.permutations([item for item in items if item.kind == tarfile.LNKTYPE]))
    return [*plain, *links]
