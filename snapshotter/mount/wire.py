"""FUSE's wire protocol: the structs of ``linux/fuse.h`` that a read-only server needs, parsed and packed. No I/O.

Names are the kernel header's without their prefix. Everything is in host byte order, which is little-endian on all
platforms that are supported. Requests come from the kernel, but what they carry was chosen by whoever called it, and a
descriptor may be handed around: every length is checked before anything is taken.
"""

from __future__ import annotations

import enum
import struct
import sys
from collections.abc import Iterable
from typing import NamedTuple

from snapshotter.errors import InvalidError, UnsupportedError

MAJOR = 7
MINOR = 41
"""The newest minor version whose rules are followed here."""
MINOR_MIN = 31
"""Linux 5.4: the oldest kernel with zero-message opendir, max_pages and cached symlinks behaving as needed."""

READ_MAX = 1 << 20
"""Largest read that is negotiated, in bytes: 256 pages, the kernel's own default limit (fs.fuse.max_pages_limit)."""
READ_AHEAD_MAX = 3 << 20
"""Bytes that the kernel reads ahead of who reads in order: three of the longest reads, so that two threads have something to
do while a third read is on its way (docs/decisions/read-ahead.md)."""
BUFFER_SIZE = 128 << 10
"""Bytes to read(2) from /dev/fuse at once. The kernel refuses less than 8 KiB and than max_write with a header
(fuse_dev_do_read); the longest that comes is a batch of forgets, which it cuts to fit."""

NAME_MAX = 255
XATTR_NAME_MAX = 255
_PATH_MAX = 4096
FOREVER = 100 * 365 * 86400
"""Validity of what never changes, in seconds; the kernel turns it into jiffies without overflow."""
UNKNOWN_INO = 0xFFFFFFFF
"""The inode number that libfuse, too, shows for ``..``."""
BLOCK_SIZE = 4096
"""``st_blksize``, and the unit of statfs(2), in bytes."""
_PADDING = [bytes(-length % 8) for length in range(8)]

Attr = tuple[int, int, int, int, int, int, int, int, int, int]
"""ino, mode with type bits, nlink, uid, gid, size, blocks of 512 bytes, rdev, and seconds (may be negative) and nanoseconds of
all three times."""

UNIQUE_RESEND = 1 << 63
"""Set in the unique of a request that is handed out again (Linux 6.9)."""
NOTIFY_RESEND = 7


class Opcode(enum.IntEnum):
    """``enum fuse_opcode``."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52


WRITING = frozenset(
    {
        Opcode.SETATTR,
        Opcode.SYMLINK,
        Opcode.MKNOD,
        Opcode.MKDIR,
        Opcode.UNLINK,
        Opcode.RMDIR,
        Opcode.RENAME,
        Opcode.RENAME2,
        Opcode.LINK,
        Opcode.WRITE,
        Opcode.SETXATTR,
        Opcode.REMOVEXATTR,
        Opcode.CREATE,
        Opcode.FALLOCATE,
        Opcode.COPY_FILE_RANGE,
        Opcode.TMPFILE,
    }
)
"""The operations that would change something: EROFS, always."""

NO_REPLY = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY})
"""The operations that the kernel expects no answer to."""


class InitFlag(enum.IntFlag):
    """``FUSE_*`` of INIT; from bit 32 on they travel in flags2."""

    ASYNC_READ = 1 << 0
    DO_READDIRPLUS = 1 << 13
    ASYNC_DIO = 1 << 15
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    INIT_EXT = 1 << 30
    HAS_RESEND = 1 << 39
    ALLOW_IDMAP = 1 << 40


# Not ASYNC_DIO: a caller that waits for a direct read could not even be killed then (fuse_direct_IO, wait_for_completion).
WANTED = (
    InitFlag.ASYNC_READ
    | InitFlag.DO_READDIRPLUS
    | InitFlag.NO_OPEN_SUPPORT
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
    | InitFlag.CACHE_SYMLINKS
    | InitFlag.NO_OPENDIR_SUPPORT
    | InitFlag.INIT_EXT
    | InitFlag.ALLOW_IDMAP  # a container in a user namespace sees other owners (idmapped); the mount has default_permissions
)
NEEDED = InitFlag.NO_OPEN_SUPPORT | InitFlag.NO_OPENDIR_SUPPORT
"""Without these every open would be answered ENOSYS to the caller; kernels from 7.31 on have them."""

IN_HEADER = struct.Struct("<IIQQIIIHH")  # len opcode unique nodeid uid gid pid total_extlen padding
OUT_HEADER = struct.Struct("<IiQ")  # len error unique
_ATTR = "QQQqqqIIIIIIIIII"  # ino size blocks atime mtime ctime their-nsec mode nlink uid gid rdev blksize flags
_ENTRY = "QQQQII"  # nodeid generation entry_valid attr_valid entry_valid_nsec attr_valid_nsec
_DIRENT_HEAD = "QQII"  # ino off namelen type
_ATTR_OUT = struct.Struct("<QII" + _ATTR)
_ENTRY_OUT = struct.Struct("<" + _ENTRY + _ATTR)
_DIRENT = struct.Struct("<" + _DIRENT_HEAD)
_DIRENTPLUS = struct.Struct("<" + _ENTRY + _ATTR + _DIRENT_HEAD)
_INIT_IN = struct.Struct("<IIII")  # major minor max_readahead flags
_INIT_IN_EXT = struct.Struct("<I")  # flags2
_INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
_READ_IN = struct.Struct("<QQIIQII")  # fh offset size read_flags lock_owner flags padding
_GETXATTR = struct.Struct("<II")  # size padding
_STATFS_OUT = struct.Struct("<QQQQQIIII24x")
_INTERRUPT_IN = struct.Struct("<Q")

MAX_BACKGROUND = 64
"""Reads ahead that the kernel keeps in flight for one mount."""

NEGATIVE_ENTRY = _ENTRY_OUT.pack(0, 0, FOREVER, FOREVER, *[0] * 18)
"""The answer to LOOKUP for a name that does not exist and never will: node id 0 with a validity."""
NO_ENTRY = bytes(_ENTRY_OUT.size)
"""The first part of a READDIRPLUS record that gives a name and no inode; the kernel looks it up if it is used."""


class MalformedRequestError(InvalidError):
    """A request breaks the protocol. `unique` names it where that much could be read, so that it can be refused."""

    def __init__(self, message: str, unique: int | None = None) -> None:
        super().__init__(message)
        self.unique = unique


class Request(NamedTuple):
    """The header of a request that the engine acts upon, and what follows it, extensions cut off.

    `pid` is the calling thread's, in the PID namespace that the file system was mounted from; 0 where it is not in there.
    """

    opcode: int
    unique: int
    nodeid: int
    pid: int
    body: memoryview


class ReadIn(NamedTuple):
    """``fuse_read_in``: READ, READDIR, READDIRPLUS. Bytes of the file, or a directory cookie to go on after."""

    offset: int
    size: int


class InitIn(NamedTuple):
    """``fuse_init_in``; `flags` holds flags2 above bit 32."""

    major: int
    minor: int
    max_readahead: int
    flags: int


class Negotiated(NamedTuple):
    """What INIT agreed on. A server that takes over a mount needs it, since the kernel sends INIT once."""

    minor: int
    flags: int
    kernel_flags: int

    @property
    def can_resend(self) -> bool:
        """Whether the kernel hands requests out again on FUSE_NOTIFY_RESEND."""
        return bool(self.kernel_flags & InitFlag.HAS_RESEND)


def parse_request(data: memoryview) -> Request:
    """The request in `data`, which is all that one read(2) of /dev/fuse gave.

    Raises:
        MalformedRequestError: the lengths in the header contradict each other or `data`.
    """
    if len(data) < IN_HEADER.size:
        unique = int.from_bytes(data[8:16], "little") if len(data) >= 16 else None
        raise MalformedRequestError(f"a FUSE request of {len(data)} bytes is shorter than its header", unique)
    length, opcode, unique, nodeid, _, _, pid, extensions, _ = IN_HEADER.unpack_from(data)
    end = length - extensions * 8
    if length != len(data) or end < IN_HEADER.size:
        raise MalformedRequestError(
            f"a FUSE request of {len(data)} bytes declares {length} and {extensions} words more", unique
        )
    return Request(opcode, unique, nodeid, pid, data[IN_HEADER.size : end])


def first_unique(data: bytes | memoryview) -> int:
    """The number that the kernel gave the request in `data` at first: where it hands one out again it adds `UNIQUE_RESEND`."""
    unique = int.from_bytes(data[8:16], sys.byteorder)
    return unique & ~UNIQUE_RESEND


def _take(layout: struct.Struct, request: Request, what: str) -> tuple[int, ...]:
    if len(request.body) < layout.size:
        raise MalformedRequestError(f"{what} with {len(request.body)} bytes, {layout.size} are needed", request.unique)
    values: tuple[int, ...] = layout.unpack_from(request.body)
    return values


def _name(raw: memoryview, limit: int, request: Request, what: str) -> bytes:
    name = bytes(raw[: limit + 2])
    if not 2 <= len(name) <= limit + 1 or name.find(0) != len(name) - 1:
        raise MalformedRequestError(f"{what} without a name that ends in its only NUL, within {limit} bytes", request.unique)
    return name[:-1]


def parse_lookup(request: Request) -> bytes:
    """The name that LOOKUP asks for. Newer kernels pass on names that are longer than any name of a file may be."""
    return _name(request.body, _PATH_MAX, request, "LOOKUP")


def parse_read(request: Request) -> ReadIn:
    """Offset and size of READ, READDIR and READDIRPLUS; the size is cut to `READ_MAX`."""
    values = _take(_READ_IN, request, "READ")
    return ReadIn(values[1], min(values[2], READ_MAX))


def parse_getxattr(request: Request) -> tuple[int, bytes]:
    """The size of the caller's buffer (0: it asks for the size) and the attribute's name."""
    size, _ = _take(_GETXATTR, request, "GETXATTR")
    return size, _name(request.body[_GETXATTR.size :], XATTR_NAME_MAX, request, "GETXATTR")


def parse_listxattr(request: Request) -> int:
    """The size of the caller's buffer (0: it asks for the size)."""
    return _take(_GETXATTR, request, "LISTXATTR")[0]


def parse_interrupt(request: Request) -> int:
    """The unique of the request whose caller has a signal pending."""
    return _take(_INTERRUPT_IN, request, "INTERRUPT")[0]


def parse_init(request: Request) -> InitIn:
    """INIT; kernels below 7.36 send no flags2."""
    major, minor, readahead, flags = _take(_INIT_IN, request, "INIT")
    if flags & InitFlag.INIT_EXT and len(request.body) >= _INIT_IN.size + _INIT_IN_EXT.size:
        flags |= _INIT_IN_EXT.unpack_from(request.body, _INIT_IN.size)[0] << 32
    return InitIn(major, minor, readahead, flags)


def negotiate(kernel: InitIn, *, acls: bool) -> Negotiated:
    """What to agree on with this kernel. `acls`: the file system holds POSIX ACLs that the kernel shall enforce.

    Raises:
        UnsupportedError: the kernel is too old.
    """
    if kernel.major < MAJOR or (kernel.major == MAJOR and kernel.minor < MINOR_MIN):
        raise UnsupportedError(
            f"the kernel speaks FUSE {kernel.major}.{kernel.minor}; {MAJOR}.{MINOR_MIN} is needed: use Linux 5.4 or newer"
        )
    if NEEDED & ~kernel.flags:
        raise UnsupportedError(
            f"FUSE {kernel.major}.{kernel.minor} of this kernel has no zero-message opens: use Linux 5.4 or newer"
        )
    wanted = WANTED | InitFlag.POSIX_ACL if acls else WANTED
    return Negotiated(min(kernel.minor, MINOR), int(wanted) & kernel.flags, kernel.flags)


def pack_init(agreed: Negotiated) -> bytes:
    """``fuse_init_out``. time_gran is 1 ns; max_write must not be 0, though nobody can write."""
    return _INIT_OUT.pack(
        MAJOR,
        agreed.minor,
        READ_AHEAD_MAX,
        agreed.flags & 0xFFFFFFFF,
        MAX_BACKGROUND,
        MAX_BACKGROUND * 3 // 4,
        4096,
        1,
        READ_MAX // 4096,
        0,
        agreed.flags >> 32,
    )


def pack_init_major() -> bytes:
    """The answer to a kernel of a newer major version: ours; it sends INIT again, then."""
    return struct.pack("<II", MAJOR, MINOR)


def pack_header(unique: int, payload: int, error: int = 0) -> bytes:
    """``fuse_out_header`` for `payload` bytes that follow, or for a (positive) errno with nothing behind."""
    return OUT_HEADER.pack(OUT_HEADER.size + payload, -error, unique)


def pack_resend() -> bytes:
    """FUSE_NOTIFY_RESEND: hand out again every request that a server took and did not answer."""
    return OUT_HEADER.pack(OUT_HEADER.size, NOTIFY_RESEND, 0)


def pack_attr_out(attr: Attr, valid: int = FOREVER) -> bytes:
    """``fuse_attr_out``, which the kernel may believe for `valid` seconds."""
    ino, mode, nlink, uid, gid, size, blocks, rdev, sec, nsec = attr
    return _ATTR_OUT.pack(
        valid, 0, 0, ino, size, blocks, sec, sec, sec, nsec, nsec, nsec, mode, nlink, uid, gid, rdev, BLOCK_SIZE, 0
    )


def pack_entry_out(attr: Attr, valid: int = FOREVER) -> bytes:
    """``fuse_entry_out``: node id is the inode number, generation 0, both believed for `valid` seconds."""
    ino, mode, nlink, uid, gid, size, blocks, rdev, sec, nsec = attr
    return _ENTRY_OUT.pack(
        ino, 0, valid, valid, 0, 0,
        ino, size, blocks, sec, sec, sec, nsec, nsec, nsec, mode, nlink, uid, gid, rdev, BLOCK_SIZE, 0,
    )  # fmt: skip


def pack_statfs_out(blocks: int, inodes: int) -> bytes:
    """``fuse_statfs_out`` of a file system that is full, as a read-only one is; `blocks` of `BLOCK_SIZE`."""
    return _STATFS_OUT.pack(blocks, 0, 0, inodes, 0, BLOCK_SIZE, NAME_MAX, BLOCK_SIZE, 0)


def pack_xattr_size(size: int) -> bytes:
    """``fuse_getxattr_out``: how large a buffer is needed."""
    return _GETXATTR.pack(size, 0)


def pack_direntplus(attr: Attr, cookie: int, name: bytes) -> bytes:
    """A record of READDIRPLUS: ``fuse_entry_out``, ``fuse_dirent``, name. `cookie` is where to go on after it."""
    ino, mode, nlink, uid, gid, size, blocks, rdev, sec, nsec = attr
    length = len(name)
    return _DIRENTPLUS.pack(
        ino, 0, FOREVER, FOREVER, 0, 0,
        ino, size, blocks, sec, sec, sec, nsec, nsec, nsec, mode, nlink, uid, gid, rdev, BLOCK_SIZE, 0,
        ino, cookie, length, mode >> 12 & 15,
    ) + name + _PADDING[length & 7]  # fmt: skip


def pack_dirent(ino: int, mode: int, cookie: int, name: bytes) -> bytes:
    """A record of READDIR; of `mode` the type bits count, 0 for a type that is not known."""
    length = len(name)
    return _DIRENT.pack(ino, cookie, length, mode >> 12 & 15) + name + _PADDING[length & 7]


def join_records(records: Iterable[bytes], size: int) -> bytes:
    """As many directory records as `size` bytes take."""
    taken = []
    for record in records:
        size -= len(record)
        if size < 0:
            break
        taken.append(record)
    return b"".join(taken)
