"""Several ranges of a body in one answer: multipart/byteranges (RFC 9110, 14.6; RFC 2046, 5.1.1).

Not every server does it: some answer with the whole body, some with one range, some join what lies close together.
Whatever is not exactly what was asked for is a `ManyRefusedError`, upon which the ranges are asked for one by one. What
comes is hostile like any answer: every part must be one of the ranges that were asked for and comes once, headers have a
bounded length, and no more is kept in memory than a block.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from snapshotter.errors import UnavailableError
from snapshotter.registry.failures import RegistryUnavailableError
from snapshotter.registry.ranges import BLOCK, CONTENT_RANGE, Extent
from snapshotter.registry.transport import Response

AT_ONCE = 64
"""Most ranges of one request: 1.2 KiB of its header. Servers have limits against those who ask for thousands."""

ASK_AGAIN = 3600.0
"""Seconds after which a server that did not answer several ranges may: it was upgraded, or a proxy before it is gone."""

STATUSES = (200, 206, 400, 416, 501)
"""The answers that `blocks` understands; all but 206 mean that it has to be asked for in another way."""

_LINE_MAX = 1024
_LINES_MAX = 32
_BOUNDARY = re.compile(
    r"""multipart/byteranges\s*;(?:.*;)?\s*boundary=("?)([0-9A-Za-z'()+_,./:=? -]{1,70})\1\s*(?:;|\Z)""", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Manner:
    """Whether a server answers requests for several ranges, as far as it has shown: `answers`, None as long as it has not
    answered one for one range; and `since` when (seconds of the caller's clock)."""

    answers: bool | None = None
    since: float = 0.0

    def at(self, now: float) -> Manner:
        """What is known at `now`: a server that did not is looked at anew after `ASK_AGAIN`."""
        return Manner() if self.answers is False and now - self.since >= ASK_AGAIN else self


class ManyRefusedError(UnavailableError):
    """The server does not answer several ranges at once, or not as it should."""


def header(extents: Sequence[Extent]) -> Mapping[str, str]:
    """What asks for all of `extents`, which do not overlap."""
    return {"Range": "bytes=" + ",".join(f"{offset}-{offset + length - 1}" for offset, length in extents)}


def blocks(response: Response, extents: Sequence[Extent], what: str) -> Iterator[tuple[int, bytes]]:
    """The bytes of `extents`, in whatever order they come, each block with its offset in the blob `what`.

    Raises:
        ManyRefusedError: it is another answer than was asked for; what came before is right.
        RegistryUnavailableError: it ends too early.
    """
    boundary = _boundary(response)
    if response.status != 206 or boundary is None:
        raise ManyRefusedError(f"{what}: {response.origin} answers a request for several ranges with {response.status}")
    body = _Body(response, what)
    delimiter = b"--" + boundary
    left = set(extents)
    while left:
        _seek(body, delimiter, what)
        extent = _extent(body)
        if extent not in left:
            raise ManyRefusedError(f"{what}: {response.origin} sends a range that was not asked for")
        left.remove(extent)
        offset, length = extent
        while length:
            block = body.take(length)
            yield offset, block
            offset += len(block)
            length -= len(block)


def _boundary(response: Response) -> bytes | None:
    match = _BOUNDARY.match(response.headers.get("Content-Type", "")[:256])
    return None if match is None else match[2].rstrip().encode("ascii")


def _seek(body: _Body, delimiter: bytes, what: str) -> None:
    """To behind the delimiter line, before which there may be an empty line."""
    for _ in range(3):
        line = body.line()
        if line.rstrip(b" \t") == delimiter:
            return
        if line:
            break
    raise ManyRefusedError(f"{what}: the parts of an answer with several ranges are not where they should be")


def _extent(body: _Body) -> Extent | None:
    """The range that the headers of a part name, None where they name none."""
    found = None
    for _ in range(_LINES_MAX):
        line = body.line()
        if not line:
            return found
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-range":
            match = CONTENT_RANGE.match(value.strip().decode("latin-1"))
            found = None if match is None else Extent(int(match[1]), int(match[2]) - int(match[1]) + 1)
    return None


class _Body:
    """The body as lines and blocks."""

    def __init__(self, response: Response, what: str) -> None:
        self._response = response
        self._what = what
        self._buffer = b""

    def line(self) -> bytes:
        """Up to the next CR LF, without it."""
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > _LINE_MAX:
                raise ManyRefusedError(f"{self._what}: an answer with several ranges has a line that does not end")
            self._buffer += self._read()
        line, self._buffer = self._buffer[:end], self._buffer[end + 2 :]
        return line

    def take(self, most: int) -> bytes:
        """At least one byte, at most `most`."""
        if not self._buffer:
            return self._read(most)
        taken, self._buffer = self._buffer[:most], self._buffer[most:]
        return taken

    def _read(self, most: int = BLOCK) -> bytes:
        piece = self._response.read(min(most, BLOCK))
        if not piece:
            raise RegistryUnavailableError(
                f"{self._what}: {self._response.origin} has ended an answer with several ranges early"
            )
        return piece
