"""Applies the members of one layer's tar stream to a tree, as containerd applies them to an overlay's upper directory.

The rules are those of containerd 1.6 (``archive/tar.go``, ``tar_opts_linux.go``), since what a container then sees is what
it has to see through us. Where containerd leaves something to the moment of unpacking (the times of directories that it
makes itself), the layer's own data decides, so that the same layer gives the same tree. Where it gives up and the OCI image
specification says what is meant (a hard link to an earlier layer, a whiteout beside an entry of the same name), the
specification is followed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from snapshotter.build.entries import Content, Node
from snapshotter.build.resolve import BlockedError, find_in_union, resolve, split
from snapshotter.build.shelf import Shelf
from snapshotter.build.tar import TarReader
from snapshotter.build.tarheader import TarHeader
from snapshotter.errors import InvalidError
from snapshotter.format.model import NAME_MAX, Kind

PATH_MAX = 4096
"""Longest path, linux/limits.h; it bounds the depth of a tree too."""

ENTRIES_MAX = 4_000_000
"""Most members of one layer."""

ATTRIBUTES_MAX = 256 << 20
"""Most bytes of extended attributes and link targets in one layer."""

FILE_BYTES_MAX = 1 << 40
"""Most bytes of the files of one layer, holes included: a sparse file of a few bytes in a tar can claim to have 8 EiB."""

HOLE_BYTES_MAX = 64 << 30
"""Most bytes of holes in one layer. An image lists them as chunks of zeros: a few bytes of a tar can be 20 MB of metadata."""

XATTR_KEY_MAX = 255  # XATTR_NAME_MAX
XATTR_VALUE_MAX = 64 << 10  # XATTR_SIZE_MAX
SYMLINK_MAX = 4095  # PATH_MAX less the final NUL
ID_MAX = (1 << 32) - 2  # the last one means "no change" to chown(2)
DEVICE_MAX = ((1 << 12) - 1, (1 << 20) - 1)  # major, minor: what the kernel's dev_t holds

_CAPABILITY = b"security.capability"
_WHITEOUT = b".wh."
_META = b".wh..wh."
_OPAQUE = b".wh..wh..opq"
_LAST_SECOND, _LAST_NANOSECOND = divmod((1 << 63) - 1, 1_000_000_000)  # containerd's boundTime

_KINDS = {
    b"0": Kind.FILE,
    b"7": Kind.FILE,
    b"2": Kind.LNK,
    b"3": Kind.CHR,
    b"4": Kind.BLK,
    b"5": Kind.DIR,
    b"6": Kind.FIFO,
}

TakeContent = Callable[[TarHeader, TarReader], Content]
"""Reads the member's data, all of it, and says where it was put."""


def read_layer(reader: TarReader, below: Sequence[Node], take: TakeContent, shelf: Shelf | None = None) -> Node:
    """The tree of the layer that `reader` yields, on top of the layers whose trees are `below` (top first).

    What of a large one is not looked at is put on the `shelf`, if there is one.

    Raises:
        InvalidError: a member that containerd would refuse too, or beyond the limits of this module.
        CorruptError: the stream is no tar archive, or is cut short.
    """
    layer = _Layer(below, shelf)
    for count, header in enumerate(reader):
        if count >= ENTRIES_MAX:
            raise InvalidError(f"the layer has more than {ENTRIES_MAX} entries")
        if reader.hole_bytes > HOLE_BYTES_MAX:
            raise InvalidError(
                f"tar member {header.name!r} brings the holes of the layer's sparse files to more than"
                f" {HOLE_BYTES_MAX >> 30} GiB"
            )
        layer.apply(header, reader, take)
    if shelf is not None:
        shelf.settle()
    return layer.root


class _Layer:
    def __init__(self, below: Sequence[Node], shelf: Shelf | None) -> None:
        # The upper directory itself is made by the snapshotter; a member that stands for it is not applied.
        self.root = Node(Kind.DIR, 0o755)
        self._below = below
        self._shelf = shelf
        self._attribute_bytes = 0
        self._file_bytes = 0
        self._parents: dict[bytes, Node] = {}

    def apply(self, header: TarHeader, reader: TarReader, take: TakeContent) -> None:
        if len(header.name) > PATH_MAX:
            raise InvalidError(f"the layer has a name of {len(header.name)} bytes; at most {PATH_MAX} are possible")
        *above, name = split(header.name) or [b""]
        if not name:
            if header.type == b"5":
                self.root.mtime, self.root.mtime_nsec = _time(header)
            return
        if len(name) > NAME_MAX + (len(_WHITEOUT) if name.startswith(_WHITEOUT) else 0):
            raise InvalidError(f"the layer has a name of {len(name)} bytes; at most {NAME_MAX} are possible: {name[:40]!r}…")
        parent = self._parent(above, header.name)
        if name.startswith(_WHITEOUT):
            self._whiteout(parent, name, header)
            return
        present = parent.names().get(name)
        if header.type == b"1":
            node = self._link_target(header)
            _change(node, header)
        elif header.type in _KINDS:
            kind = _KINDS[header.type]
            node = present if kind is Kind.DIR and present is not None and present.kind is Kind.DIR else Node(kind)
            self._fill(node, header)
            if kind is Kind.FILE:
                self._file_bytes += header.size
                if self._file_bytes > FILE_BYTES_MAX:
                    raise InvalidError(
                        f"tar member {header.name!r} brings the layer's files to more than {FILE_BYTES_MAX >> 40} TiB"
                    )
                node.content = take(header, reader)
        else:
            raise InvalidError(f"tar member {header.name!r} is of type {header.type!r}, which no layer may hold")
        self._set_xattrs(node, header)
        if node is not present:
            if present is not None:
                self._parents.clear()
            parent.names()[name] = node
        if self._shelf is not None:
            self._shelf.added(parent)

    # Names.

    def _parent(self, path: list[bytes], member: bytes) -> Node:
        """The directory `path` of this layer, made if need be, with symlinks followed within this layer only."""
        key = b"/".join(path)
        known = self._parents.get(key)
        if known is not None:
            return known
        try:
            place, node = resolve(self.root, path, whiteouts_are_gone=True)
        except BlockedError as error:
            raise InvalidError(f"tar member {member!r} cannot be placed: {error}") from None
        if node is None:
            node = self._make(place)
        elif node.kind is not Kind.DIR:
            raise InvalidError(f"tar member {member!r} cannot be placed: {b'/'.join(place)!r} is not a directory")
        if len(self._parents) >= 4096:
            self._parents.clear()
        self._parents[key] = node
        return node

    def _make(self, place: Sequence[bytes]) -> Node:
        """Make the directories on the way to `place` that are missing."""
        if sum(map(len, place)) + len(place) > PATH_MAX:
            raise InvalidError(f"the layer has a path of more than {PATH_MAX} bytes: {b'/'.join(place)[:80]!r}…")
        node = self.root
        for depth, name in enumerate(place, 1):
            if len(name) > NAME_MAX:
                raise InvalidError(
                    f"the layer has a name of {len(name)} bytes; at most {NAME_MAX} are possible: {name[:40]!r}…"
                )
            child = node.names().get(name)
            if child is None or child.kind is Kind.WHT:
                made = self._missing_parent(place[:depth])
                # What a whiteout of this layer hid stays hidden.
                made.look_below = child is None
                node.names()[name] = child = made
            node = child
        return node

    def _missing_parent(self, place: Sequence[bytes]) -> Node:
        """A directory that no member describes: as the first earlier layer that has it, each looked at on its own."""
        for root in self._below:
            try:
                _, node = resolve(root, place)
            except InvalidError:
                break
            if node is None:
                continue
            if node.kind is not Kind.DIR:
                break
            made = node.copy()
            made.xattrs = {key: value for key, value in made.xattrs.items() if not key.startswith(b"trusted.")}
            return made
        return Node(Kind.DIR, 0o755)

    # Members.

    def _whiteout(self, parent: Node, name: bytes, header: TarHeader) -> None:
        if name == _OPAQUE:
            # overlayfs merges root directories whatever they say.
            parent.look_below = parent is self.root
            return
        hidden = name[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise InvalidError(f"tar member {header.name!r} is a whiteout of no name")
        # Names of aufs' own (.wh..wh.plnk) hide nothing; a whiteout is about the layers below, never about this one.
        if not name.startswith(_META) and hidden not in parent.names():
            node = Node(Kind.WHT, 0)
            node.uid, node.gid = _owner(header)
            parent.names()[hidden] = node

    def _link_target(self, header: TarHeader) -> Node:
        if len(header.linkname) > PATH_MAX:
            raise InvalidError(f"hard link {header.name!r} has a target of {len(header.linkname)} bytes")
        place, node = find_in_union([self.root, *self._below], split(header.linkname))
        if node is None:
            raise InvalidError(f"hard link {header.name!r}: its target {header.linkname!r} is neither in this layer nor below")
        if node.kind is Kind.DIR:
            raise InvalidError(f"hard link {header.name!r}: its target {header.linkname!r} is a directory")
        parent = self._parent(place[:-1], header.name)
        if parent.names().get(place[-1]) is node:
            node.is_shared = True
            return node
        # The target lies in an earlier layer: both names come to stand in this one, as overlayfs copies a file up.
        node = node.copy()
        node.xattrs = {key: value for key, value in node.xattrs.items() if not key.startswith(b"trusted.")}
        node.is_shared = True
        parent.names()[place[-1]] = node
        return node

    def _fill(self, node: Node, header: TarHeader) -> None:
        _change(node, header)
        if node.kind is Kind.LNK:
            if not 0 < len(header.linkname) <= SYMLINK_MAX:
                raise InvalidError(f"symlink {header.name!r} has a target of {len(header.linkname)} bytes")
            self._account(len(header.linkname))
            node.target = header.linkname
            node.permissions = 0o777
        elif node.kind in (Kind.CHR, Kind.BLK):
            if not (0 <= header.device[0] <= DEVICE_MAX[0] and 0 <= header.device[1] <= DEVICE_MAX[1]):
                raise InvalidError(f"device {header.name!r} has the number {header.device}, which Linux does not have")
            node.device = header.device
            if node.kind is Kind.CHR and node.device == (0, 0):
                node.kind = Kind.WHT  # what overlayfs takes such a device for

    def _set_xattrs(self, node: Node, header: TarHeader) -> None:
        for key, value in header.xattrs.items():
            if not _settable(node, key):
                continue
            if b"\0" in key or len(key) > XATTR_KEY_MAX or len(value) > XATTR_VALUE_MAX:
                raise InvalidError(
                    f"tar member {header.name!r} has an extended attribute beyond the kernel's limits: {key[:40]!r},"
                    f" {len(value)} bytes"
                )
            self._account(len(key) + len(value))
            node.xattrs = {**node.xattrs, key: value}

    def _account(self, count: int) -> None:
        self._attribute_bytes += count
        if self._attribute_bytes > ATTRIBUTES_MAX:
            raise InvalidError(f"the layer has more than {ATTRIBUTES_MAX >> 20} MiB of extended attributes and link targets")


def _change(node: Node, header: TarHeader) -> None:
    """What chown, chmod and utimensat do with a member's header; for a hard link they change the inode that it links to."""
    node.uid, node.gid = _owner(header)
    if node.kind is not Kind.DIR and _CAPABILITY in node.xattrs:  # the kernel drops it when a file's owner is set
        node.xattrs = {key: value for key, value in node.xattrs.items() if key != _CAPABILITY}
    if node.kind is not Kind.LNK:
        node.permissions = header.mode & 0o7777
    node.mtime, node.mtime_nsec = _time(header)


def _settable(node: Node, key: bytes) -> bool:
    """Whether containerd would set this attribute: it ignores trusted ones and what the kernel does not support."""
    if key.startswith(b"user."):
        return node.kind in (Kind.FILE, Kind.DIR)
    if key.startswith(b"security."):
        return True
    return key in (b"system.posix_acl_access", b"system.posix_acl_default") and node.kind is not Kind.LNK


def _owner(header: TarHeader) -> tuple[int, int]:
    if not (0 <= header.uid <= ID_MAX and 0 <= header.gid <= ID_MAX):
        raise InvalidError(f"tar member {header.name!r} has the owner {header.uid}:{header.gid}, which Linux does not have")
    return header.uid, header.gid


def _time(header: TarHeader) -> tuple[int, int]:
    time = (header.mtime, header.mtime_nsec)
    return time if (0, 0) <= time <= (_LAST_SECOND, _LAST_NANOSECOND) else (0, 0)
