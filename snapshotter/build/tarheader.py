"""The fields of tar headers, and of the PAX records that change them: pure functions on bytes.

The numbers and texts that are accepted are those of Go's archive/tar. Everything else is a `CorruptError`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from snapshotter.errors import CorruptError

SIZE_MAX = (1 << 63) - 1

_XATTR = b"SCHILY.xattr."
_SIGNED = struct.Struct("512b")
_FIELDS = struct.Struct("100s8s8s8s12s12s8s1s100s8s64x8s8s155s12s")
"""Name, mode, uid, gid, size, mtime, checksum, type, link, magic and version, device numbers, prefix, the rest."""


@dataclass(slots=True)
class TarHeader:
    """One member. `type` is the header's type flag, ``0`` for regular files; `size` counts the file's bytes, holes included."""

    type: bytes
    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    mtime_nsec: int
    linkname: bytes
    device: tuple[int, int]
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


def is_sound(block: bytes) -> bool:
    """Whether a header's checksum is right: the sum of its bytes, with spaces in its own field; old tars summed signed ones."""
    declared = number(block[148:156], "checksum")
    if _sum(block) - _sum(block[148:156]) + 256 == declared:
        return True
    signed: tuple[int, ...] = _SIGNED.unpack(block)
    return sum(signed) - sum(signed[148:156]) + 256 == declared


def parse_block(block: bytes) -> TarHeader:
    name, mode, uid, gid, size, mtime, _, kind, link, magic, major, minor, prefix, rest = _FIELDS.unpack(block)
    name = _text(name)
    posix = magic[:6] == b"ustar\0"
    if posix and prefix[0]:
        # star keeps access and change time in the last 24 bytes of the prefix.
        name = _text(prefix[:131] if rest[8:] == b"tar\0" else prefix) + b"/" + name
    device = (_common(major, "device"), _common(minor, "device")) if posix or magic == b"ustar  \0" else (0, 0)
    return TarHeader(
        type=kind,
        name=name,
        mode=_common(mode, "mode"),
        uid=_common(uid, "uid"),
        gid=_common(gid, "gid"),
        size=number(size, "size"),
        mtime=number(mtime, "mtime"),
        mtime_nsec=0,
        linkname=_text(link),
        device=device,
    )


def _sum(raw: bytes) -> int:
    """The sum of up to 512 bytes. adler32's low half is a sum modulo 65521, which 256 bytes cannot reach; 10 times sum()."""
    return (zlib.adler32(raw[:256], 0) & 0xFFFF) + (zlib.adler32(raw[256:], 0) & 0xFFFF)


def _text(raw: bytes) -> bytes:
    return raw.split(b"\0", 1)[0]


def number(raw: bytes, what: str) -> int:
    """An octal field, or a binary one (GNU: the first bit is set, the second is the sign)."""
    usual = raw.rstrip(b"\0 ")
    if usual.isdigit():
        try:
            return int(usual, 8)
        except ValueError:
            pass
    if raw[0] & 0x80:
        value = int.from_bytes(raw, "big") & ~(1 << (8 * len(raw) - 1))
        if raw[0] & 0x40:
            value -= 1 << (8 * len(raw) - 1)
        if not -(1 << 63) <= value < 1 << 63:
            raise CorruptError(f"tar header: {what} is out of range")
        return value
    text = raw.split(b"\0", 1)[0].strip(b" ") or raw.strip(b" \0")
    if not text:
        return 0
    try:
        # int() also takes what no tar writes: signs, underscores, a prefix.
        if not text.isdigit():
            raise ValueError
        return int(text, 8)
    except ValueError:
        raise CorruptError(f"tar header: {what} is not a number: {raw!r}") from None


_common = lru_cache(256)(number)
"""`number` of a field that many members have alike: it takes a tenth of the time."""


def decimal(raw: bytes, what: str) -> int:
    text = raw[1:] if raw[:1] == b"-" else raw
    if not text.isdigit() or len(text.lstrip(b"0")) > 18:
        raise CorruptError(f"tar header: {what} is not a number: {raw[:100]!r}")
    return int(raw)


def pax_records(data: bytes) -> tuple[dict[bytes, bytes], list[bytes]]:
    """The records of a PAX header, and the numbers of a sparse map that stand in repeated records (version 0.0)."""
    usual = _lines(data)
    if usual is not None:
        return usual, []
    records: dict[bytes, bytes] = {}
    pairs: list[bytes] = []
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 21)
        length = data[at:space] if space > 0 else b""
        end = at + int(length) if length.isdigit() else -1
        equals = data.find(b"=", space, end)
        if not at + 5 <= end <= len(data) or data[end - 1] != 0x0A or equals < 0:
            raise CorruptError(f"tar archive: malformed PAX record {data[at : at + 100]!r}")
        key, value = data[space + 1 : equals], data[equals + 1 : end - 1]
        if key == b"GNU.sparse.offset" or key == b"GNU.sparse.numbytes":
            if (len(pairs) % 2 == 0) != (key == b"GNU.sparse.offset"):
                raise CorruptError("tar archive: the PAX records of a sparse map are out of order")
            pairs.append(value)
        else:
            records[key] = value
        at = end
    return records, pairs


_REPEATED = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")


def _lines(data: bytes) -> dict[bytes, bytes] | None:
    """The records, if each is a line and none is of a sparse map: so are nearly all, and these take half the time."""
    records: dict[bytes, bytes] = {}
    *lines, rest = data.split(b"\n")
    for line in lines:
        length, space, record = line.partition(b" ")
        key, equals, value = record.partition(b"=")
        sound = space and equals and length.isdigit() and len(length) <= 20 and int(length) == len(line) + 1 >= 5
        if not sound or key in _REPEATED:
            return None
        records[key] = value
    return None if rest else records


def apply_pax(header: TarHeader, pax: dict[bytes, bytes]) -> None:
    """Put what the records say over the header's own fields; an empty value leaves them as they are."""
    for key, value in pax.items():
        if key.startswith(_XATTR):
            header.xattrs[key[len(_XATTR) :]] = value
        elif not value:
            continue
        elif key == b"path":
            header.name = _no_nul(value, "path")
        elif key == b"linkpath":
            header.linkname = _no_nul(value, "linkpath")
        elif key == b"uid":
            header.uid = decimal(value, "uid")
        elif key == b"gid":
            header.gid = decimal(value, "gid")
        elif key == b"size":
            header.size = decimal(value, "size")
        elif key == b"mtime":
            header.mtime, header.mtime_nsec = _time(value)


def _no_nul(value: bytes, what: str) -> bytes:
    if b"\0" in value:
        raise CorruptError(f"tar header: {what} holds a NUL byte: {value[:100]!r}")
    return value


def _time(value: bytes) -> tuple[int, int]:
    """Seconds and nanoseconds of a PAX time; what is finer than a nanosecond is cut off."""
    whole, _, fraction = value.partition(b".")
    if fraction and not fraction.isdigit():
        raise CorruptError(f"tar header: mtime is not a time: {value[:100]!r}")
    seconds = decimal(whole, "mtime")
    nanoseconds = int(fraction[:9].ljust(9, b"0"))
    if whole.startswith(b"-") and nanoseconds:
        return seconds - 1, 1_000_000_000 - nanoseconds
    return seconds, nanoseconds


def pairs_of(numbers: Sequence[int]) -> list[tuple[int, int]]:
    if len(numbers) % 2:
        raise CorruptError("tar archive: a sparse map with an odd number of numbers")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def runs_of(runs: Sequence[tuple[int, int]], header: TarHeader, stored: int) -> list[tuple[int, int]]:
    """The runs of a sparse file as (zeros, data), last first, once its map is known to be sound."""
    found = []
    end = total = 0
    for offset, length in runs:
        if offset < end or length < 0 or offset + length > header.size:
            raise CorruptError(f"tar archive: the sparse map of {header.name[:200]!r} is not in order or exceeds the file")
        found.append((offset - end, length))
        end = offset + length
        total += length
    if total != stored:
        raise CorruptError(f"tar archive: {header.name[:200]!r} stores {stored} bytes, its sparse map says {total}")
    if not 0 <= header.size <= SIZE_MAX:
        raise CorruptError(f"tar archive: {header.name[:200]!r} has a size of {header.size} bytes")
    found.append((header.size - end, 0))
    return found[::-1]
