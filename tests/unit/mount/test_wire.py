"""FUSE's wire protocol: sizes as in linux/fuse.h, requests taken apart, versions agreed on, nothing read beyond a bound."""

from __future__ import annotations

import contextlib
import stat
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.errors import UnsupportedError
from snapshotter.mount import wire
from snapshotter.mount.wire import InitFlag, InitIn, Opcode

KERNEL_FLAGS = int(wire.WANTED | InitFlag.POSIX_ACL | InitFlag.HAS_RESEND)


def request(opcode: int, body: bytes = b"", *, nodeid: int = 1, unique: int = 2, extensions: bytes = b"") -> memoryview:
    """A request as the kernel writes it."""
    header = wire.IN_HEADER.pack(40 + len(body) + len(extensions), opcode, unique, nodeid, 0, 0, 0, len(extensions) // 8, 0)
    return memoryview(header + body + extensions)


FILE = (9, 0o100644, 1, 2, 3, 513, 2, 4, 1_700_000_000, 5)
"""The attributes of some file."""


def parsed(opcode: int, body: bytes) -> wire.Request:
    return wire.parse_request(request(opcode, body))


def test_sizes_are_the_kernels() -> None:
    assert (wire.IN_HEADER.size, wire.OUT_HEADER.size) == (40, 16)
    assert len(wire.NEGATIVE_ENTRY) == len(wire.NO_ENTRY) == 128
    assert len(wire.pack_init(wire.Negotiated(31, 0, 0))) == 64
    assert len(wire.pack_statfs_out(1, 1)) == 80
    assert len(wire.pack_attr_out(FILE)) == 104
    assert len(wire.pack_entry_out(FILE)) == 128
    assert len(wire.pack_direntplus(FILE, 1, b"name")) == 128 + 24 + 8
    assert len(wire.pack_dirent(1, 0o100644, 1, b"longname")) == 24 + 8


def test_extensions_are_cut_off() -> None:
    taken = wire.parse_request(request(Opcode.LOOKUP, b"name\0", extensions=bytes(16)))
    assert taken == (Opcode.LOOKUP, 2, 1, 0, b"name\0")


@pytest.mark.parametrize("length", [0, 15, 16, 39])
def test_a_short_header_is_refused(length: int) -> None:
    with pytest.raises(wire.MalformedRequestError) as caught:
        wire.parse_request(request(Opcode.GETATTR)[:length])
    assert caught.value.unique == (None if length < 16 else 2)


@pytest.mark.parametrize(("declared", "extensions"), [(39, 0), (41, 0), (2**32 - 1, 0), (40, 1), (40, 65535)])
def test_lengths_that_contradict_are_refused(declared: int, extensions: int) -> None:
    data = wire.IN_HEADER.pack(declared, Opcode.GETATTR, 2, 1, 0, 0, 0, extensions, 0)
    with pytest.raises(wire.MalformedRequestError):
        wire.parse_request(memoryview(data))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    try:
        taken = wire.parse_request(memoryview(data))
    except wire.MalformedRequestError:
        return
    assert len(taken.body) <= len(data) - 40


@given(
    st.sampled_from([wire.parse_lookup, wire.parse_read, wire.parse_getxattr, wire.parse_listxattr, wire.parse_init]),
    st.binary(),
)
def test_any_body_is_taken_or_refused(parse: object, body: bytes) -> None:
    assert callable(parse)
    with contextlib.suppress(wire.MalformedRequestError):
        parse(parsed(Opcode.LOOKUP, body))


def test_names() -> None:
    assert wire.parse_lookup(parsed(Opcode.LOOKUP, b"n" * 255 + b"\0")) == b"n" * 255
    for body in (b"", b"\0", b"no end", b"a\0b\0", b"n" * 5000 + b"\0"):
        with pytest.raises(wire.MalformedRequestError):
            wire.parse_lookup(parsed(Opcode.LOOKUP, body))
    assert wire.parse_getxattr(parsed(Opcode.GETXATTR, struct.pack("<II", 7, 0) + b"user.x\0")) == (7, b"user.x")
    with pytest.raises(wire.MalformedRequestError):
        wire.parse_getxattr(parsed(Opcode.GETXATTR, struct.pack("<II", 7, 0) + b"x" * 256 + b"\0"))


def test_absurd_sizes_of_reads_are_cut() -> None:
    body = struct.pack("<QQIIQII", 0, 2**64 - 1, 2**32 - 1, 0, 0, 0, 0)
    assert wire.parse_read(parsed(Opcode.READ, body)) == (2**64 - 1, wire.READ_MAX)


def test_init_of_old_and_new_kernels() -> None:
    old = struct.pack("<IIII", 7, 31, 131072, 0xFF)
    new = struct.pack("<IIIII44x", 7, 45, 131072, 1 << 30, 1 << 7)
    assert wire.parse_init(parsed(Opcode.INIT, old)) == InitIn(7, 31, 131072, 0xFF)
    assert wire.parse_init(parsed(Opcode.INIT, new)).flags == InitFlag.INIT_EXT | InitFlag.HAS_RESEND


def test_versions() -> None:
    assert wire.negotiate(InitIn(7, 31, 0, KERNEL_FLAGS), acls=False).minor == 31
    assert wire.negotiate(InitIn(7, 99, 0, KERNEL_FLAGS), acls=False).minor == wire.MINOR
    for kernel in (InitIn(7, 30, 0, KERNEL_FLAGS), InitIn(6, 50, 0, KERNEL_FLAGS)):
        with pytest.raises(UnsupportedError, match=r"Linux 5\.4"):
            wire.negotiate(kernel, acls=False)
    with pytest.raises(UnsupportedError, match="zero-message"):
        wire.negotiate(InitIn(7, 40, 0, KERNEL_FLAGS & ~InitFlag.NO_OPEN_SUPPORT), acls=False)


@given(st.integers(0, 2**64 - 1), st.booleans())
def test_only_what_the_kernel_offers_is_asked_for(flags: int, acls: bool) -> None:
    offered = flags | wire.NEEDED
    agreed = wire.negotiate(InitIn(7, 38, 0, offered), acls=acls)
    assert agreed.flags & ~offered == 0
    assert bool(agreed.flags & InitFlag.POSIX_ACL) == (acls and bool(offered & InitFlag.POSIX_ACL))
    assert agreed.can_resend == bool(offered & InitFlag.HAS_RESEND)


def test_replies() -> None:
    assert wire.pack_header(5, 100) == struct.pack("<IiQ", 116, 0, 5)
    assert wire.pack_header(5, 0, 2) == struct.pack("<IiQ", 16, -2, 5)
    assert wire.pack_resend() == struct.pack("<IiQ", 16, 7, 0)
    init = struct.unpack_from("<IIIIHHIIHHI", wire.pack_init(wire.Negotiated(41, (1 << 22) | (1 << 39), 0)))
    assert init == (7, 41, 3 << 20, 1 << 22, 64, 48, 4096, 1, 256, 0, 1 << 7)


@pytest.mark.parametrize("seconds", [0, 1, -1, 1_700_000_000, -(2**63), 2**63 - 1])
@pytest.mark.parametrize("nsec", [0, 999_999_999])
def test_every_answer_with_attributes_has_them_alike(seconds: int, nsec: int) -> None:
    attr = (9, 0o100644, 1, 2, 3, 513, 2, 4, seconds, nsec)
    expected = struct.pack("<QQQqqqIIIIIIIIII", 9, 513, 2, *[seconds] * 3, *[nsec] * 3, 0o100644, 1, 2, 3, 4, 4096, 0)
    entry = struct.pack("<QQQQII", 9, 0, wire.FOREVER, wire.FOREVER, 0, 0) + expected
    assert wire.pack_attr_out(attr) == struct.pack("<QII", wire.FOREVER, 0, 0) + expected
    assert wire.pack_entry_out(attr) == entry
    assert wire.pack_direntplus(attr, 7, b"abc") == entry + struct.pack("<QQII", 9, 7, 3, 8) + b"abc" + bytes(5)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [(stat.S_IFIFO, 1), (stat.S_IFCHR, 2), (stat.S_IFDIR, 4), (stat.S_IFBLK, 6), (stat.S_IFREG, 8), (stat.S_IFLNK, 10),
     (stat.S_IFSOCK, 12), (0, 0)],
)  # fmt: skip
def test_directory_records_have_the_types_of_getdents(mode: int, kind: int) -> None:
    assert struct.unpack_from("<QQII", wire.pack_dirent(5, mode | 0o7777, 6, b"n")) == (5, 6, 1, kind)


@given(st.lists(st.binary(min_size=1, max_size=255), max_size=30), st.booleans(), st.integers(0, 5000))
def test_directory_records_come_back_whole_and_in_order(names: list[bytes], plus: bool, size: int) -> None:
    prefix = 128 if plus else 0
    records = [
        wire.pack_direntplus((index + 10, *FILE[1:]), index + 1, name)
        if plus
        else wire.pack_dirent(index + 10, 0o100644, index + 1, name)
        for index, name in enumerate(names)
    ]
    packed = wire.join_records(records, size)
    assert len(packed) <= size
    found = []
    at = 0
    while at < len(packed):
        ino, cookie, length, kind = struct.unpack_from("<QQII", packed, at + prefix)
        start = at + prefix + 24
        found.append((ino, cookie, kind, packed[start : start + length]))
        at += -(-(prefix + 24 + length) // 8) * 8
    assert at == len(packed)
    assert found == [(index + 10, index + 1, 8, name) for index, name in enumerate(names[: len(found)])]
    if len(found) < len(records):
        assert len(packed) + len(records[len(found)]) > size


def init_message(minor: int, flags: int, flags2: int | None) -> bytes:
    """INIT as Linux builds it (fuse_send_init): from 7.36 on it has flags2 and room for more."""
    if flags2 is None:
        return struct.pack("<IIII", 7, minor, 131072, flags)
    return struct.pack("<IIIII44x", 7, minor, 131072, flags, flags2)


KERNELS = {
    "5.4": init_message(31, 0x03FFFFFB, None),
    "5.10": init_message(32, 0x03FFFFFB, None),
    "5.15": init_message(34, 0x33FFFFFB, None),
    "6.1": init_message(37, 0x73FFFFFB, 0x001),
    "6.6": init_message(39, 0x73FFFFFB, 0x01D),
    "6.12": init_message(41, 0x73FFFFFB, 0x1FD),
    "6.18": bytes.fromhex("070000002d00000000000200fbffff73fd050000") + bytes(44),
}
"""What kernels send: the last one as it was read from /dev/fuse, the others as their fs/fuse/inode.c puts it together."""


@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_every_kernel_from_5_4_on_is_agreed_with(kernel: str) -> None:
    asked = wire.parse_init(parsed(Opcode.INIT, KERNELS[kernel]))
    agreed = wire.negotiate(asked, acls=True)
    minor, flags = struct.unpack_from("<4xI4xI", wire.pack_init(agreed))
    assert minor == min(asked.minor, wire.MINOR)
    assert agreed.flags & ~asked.flags == 0
    for needed in (InitFlag.NO_OPEN_SUPPORT, InitFlag.NO_OPENDIR_SUPPORT, InitFlag.DO_READDIRPLUS, InitFlag.MAX_PAGES):
        assert flags & needed
    assert agreed.can_resend == (kernel in ("6.12", "6.18"))


@pytest.mark.parametrize(
    ("kernel", "minor", "flags"), [("4.19", 27, 0x00FFFFFB), ("5.1", 29, 0x01FFFFFB), ("5.3", 30, 0x03FFFFFB)]
)
def test_older_kernels_are_told_what_they_lack(kernel: str, minor: int, flags: int) -> None:
    asked = wire.parse_init(parsed(Opcode.INIT, init_message(minor, flags, None)))
    with pytest.raises(UnsupportedError, match=rf"the kernel speaks FUSE 7\.{minor}; 7\.31 is needed: use Linux 5\.4 or newer"):
        wire.negotiate(asked, acls=False)
