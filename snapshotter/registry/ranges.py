"""Ranges of a body over HTTP (RFC 9110, section 14), from servers that do them and from those that do not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from snapshotter.errors import CorruptError
from snapshotter.registry.failures import RegistryUnavailableError
from snapshotter.registry.transport import Response

RANGE_SKIP_MAX = 32 << 20
"""Most bytes that are read and thrown away to reach a range, from a server that answers 200 with the whole blob."""

STATUSES = (200, 206, 416)
"""The answers that `read` understands."""

BLOCK = 64 << 10
"""Bytes that are waited for at once: 3 ms at 200 Mbit/s, for what is decoded as it comes."""

CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)\Z")


class Extent(NamedTuple):
    """`length` bytes of a blob from `offset` on."""

    offset: int
    length: int


def header(offset: int, length: int) -> Mapping[str, str]:
    """What asks for `length` (at least one) bytes from `offset` on."""
    return {"Range": f"bytes={offset}-{offset + length - 1}"}


def read(response: Response, offset: int, length: int, what: str) -> bytes:
    """The `length` bytes from `offset` on of what `response` sends, which was asked for them with `header`.

    Raises:
        CorruptError, RegistryUnavailableError: as `blocks`.
    """
    return b"".join(block for _, block in blocks(response, offset, length, what))


def blocks(response: Response, offset: int, length: int, what: str) -> Iterator[tuple[int, bytes]]:
    """As `read`, as it comes: blocks with their offset in the blob.

    Raises:
        CorruptError, RegistryUnavailableError: as `range_start`, and the latter also where the body ends too early.
    """
    _skip(response, range_start(response, offset, length, what), what)
    end = offset + length
    at = offset
    while at < end:
        piece = response.read(min(end - at, BLOCK))
        if not piece:
            raise RegistryUnavailableError(
                f"{what}: {response.origin} sent {at - offset} of the {length} bytes from {offset} on"
            )
        yield at, piece
        at += len(piece)


def range_start(response: Response, offset: int, length: int, what: str) -> int:
    """How many bytes of the body come before the range of `length` bytes from `offset` on that was asked for.

    Pure in what it decides: from status and headers alone.

    Raises:
        CorruptError: the blob ends before the range does, or the answer is another range.
        RegistryUnavailableError: the server does not do ranges, and this one lies too far inside.
    """
    status, given = response.status, response.length
    end = offset + length
    if status == 416:
        raise CorruptError(f"{what} ends before byte {end}: it has no such range (416)")
    if status == 200:
        if given is not None and given < end:
            raise CorruptError(f"{what} ends before byte {end}: it has {given}")
        if offset > RANGE_SKIP_MAX:
            raise RegistryUnavailableError(
                f"{what}: {response.origin} answers range requests with the whole blob; "
                f"lazy reading needs a registry (or a proxy before it) that passes Range on",
                retryable=False,
            )
        return offset
    match = CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
    if match is None:
        raise CorruptError(f"{what}: {response.origin} answers a range request without saying which range it sends")
    first, last = int(match[1]), int(match[2])
    if first != offset or last >= end:
        raise CorruptError(f"{what}: asked for bytes {offset} to {end - 1}, {response.origin} sends {first} to {last}")
    if last < end - 1:
        raise CorruptError(f"{what} ends before byte {end}: the registry sends it only to {last}")
    return 0


def _skip(response: Response, count: int, what: str) -> None:
    while count > 0:
        piece = response.read(min(count, BLOCK))
        if not piece:
            raise CorruptError(f"{what} ends before the range that was asked for")
        count -= len(piece)
