"""Reads a tar stream: ustar, V7, star, GNU and PAX headers, long names, every form of GNU sparse file.

Accepts what containerd's reader accepts (Go's archive/tar), so that an image which containerd unpacks can be converted, and
gives the same fields. Python's tarfile is not used: it takes a broken header for the end of the archive and so drops the
rest of a layer silently, rounds PAX times to floats, applies global headers, reads headers of any size into memory, and
takes 35 µs a member where this takes 12.

Everything read here may be hostile: headers are bounded (`HEADER_MAX`), every failure is a `CorruptError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from snapshotter.build.tarheader import (
    SIZE_MAX,
    TarHeader,
    apply_pax,
    decimal,
    is_sound,
    number,
    pairs_of,
    parse_block,
    pax_records,
    runs_of,
)
from snapshotter.errors import CorruptError

BLOCK = 512

HEADER_MAX = 1 << 20
"""Largest PAX header or GNU long name, in bytes: the limit of Go's reader."""

SPARSE_MAX = 4 << 20
"""Largest map of a sparse file, in stored bytes."""

_IN_PLACE = 64 << 10
"""Room from which on data is read to where it is wanted, not through a block: a call's cost, and a copy's, balance there."""

_STEP = 256 << 10
"""Most bytes read in place at once: what the source does with them (it hashes them) finds them in the processor's cache."""

_HEADER_ONLY = frozenset(b"123456")  # links, devices, directories, fifos: no data follows, whatever the size says
_ZERO = bytes(BLOCK)


class ByteSource(Protocol):
    """Where the archive's bytes come from."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; empty at the end."""
        ...


@runtime_checkable
class InPlaceSource(ByteSource, Protocol):
    """A `ByteSource` that can also put its bytes where they are wanted."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Put up to ``len(buffer)`` bytes into `buffer`; how many, 0 at the end."""
        ...


class TarReader:
    """Iterates over a tar stream; after each member, `readinto` yields its data, holes filled with zeros."""

    def __init__(self, source: ByteSource) -> None:
        """Read from `source`, which need not seek."""
        self._source = source
        self._in_place = source if isinstance(source, InPlaceSource) else None
        self._block = memoryview(b"")
        self._at = 0
        self._offset = 0  # of the next byte, in the archive
        self._stored = 0  # bytes of this member's data that are still in the stream
        self._padding = 0
        self._runs: list[tuple[int, int]] = []  # (zero bytes, data bytes) still to be given, last first
        self._member = b""
        self.hole_bytes = 0
        """Bytes of holes in the members so far."""

    def __iter__(self) -> Iterator[TarHeader]:
        """The members in order.

        Raises:
            CorruptError: the stream is no tar archive, or is cut short.
        """
        while (header := self._next()) is not None:
            yield header

    def readinto(self, buffer: memoryview, /) -> int:
        """Read up to ``len(buffer)`` bytes of the current member into `buffer`; 0 at its end.

        Raises:
            CorruptError: the archive ends first.
        """
        if not len(buffer):
            return 0
        while self._runs:
            hole, data = self._runs[-1]
            if hole:
                count = min(hole, len(buffer))
                buffer[:count] = bytes(count)
                self._runs[-1] = (hole - count, data)
                return count
            if data:
                count = self._copy(buffer[: min(data, len(buffer))])
                self._runs[-1] = (0, data - count)
                self._stored -= count
                return count
            self._runs.pop()
        return 0

    def hole(self) -> int:
        """How many of the current member's next bytes are zeros of a hole."""
        return self._runs[-1][0] if self._runs else 0

    def skip(self, count: int) -> None:
        """Leave out `count` bytes of the `hole`, as if they had been read."""
        hole, data = self._runs[-1]
        self._runs[-1] = (hole - count, data)

    def drain(self) -> None:
        """Read the source to its end: what follows the archive's last block counts for its digest."""
        self._at = len(self._block)
        while self._source.read(1 << 20):
            pass

    # The stream, in blocks as the source gives them.

    def _copy(self, target: memoryview) -> int:
        if self._at == len(self._block) and self._in_place is not None and len(target) >= _IN_PLACE:
            count = self._in_place.readinto(target[:_STEP])
        else:
            count = 0
            if self._at < len(self._block) or self._refill():
                count = min(len(target), len(self._block) - self._at)
                target[:count] = self._block[self._at : self._at + count]
                self._at += count
        if not count:
            raise CorruptError(f"tar archive ends at byte {self._offset}, within the data of {self._member[:200]!r}")
        self._offset += count
        return count

    def _refill(self) -> bool:
        self._block = memoryview(self._source.read(1 << 20))
        self._at = 0
        return len(self._block) > 0

    def _take(self, size: int) -> bytes:
        """Up to `size` bytes, fewer only at the end."""
        end = self._at + size
        if end <= len(self._block):
            piece = bytes(self._block[self._at : end])
            self._at = end
            self._offset += size
            return piece
        parts = []
        while size and (self._at < len(self._block) or self._refill()):
            count = min(size, len(self._block) - self._at)
            parts.append(bytes(self._block[self._at : self._at + count]))
            self._at += count
            self._offset += count
            size -= count
        return b"".join(parts)

    def _need(self, size: int, what: str) -> bytes:
        piece = self._take(size)
        if len(piece) != size:
            raise CorruptError(f"tar archive ends at byte {self._offset}, within {what}")
        return piece

    def _skip(self, size: int) -> None:
        while size:
            if self._at == len(self._block) and not self._refill():
                raise CorruptError(f"tar archive ends at byte {self._offset}, within the data of {self._member[:200]!r}")
            count = min(size, len(self._block) - self._at)
            self._at += count
            self._offset += count
            size -= count

    # Headers.

    def _next(self) -> TarHeader | None:
        self._skip(self._stored + self._padding)
        self._stored = self._padding = 0
        self._runs = []
        pax: dict[bytes, bytes] = {}
        sparse_pairs: list[bytes] = []
        long_name = long_link = b""
        while True:
            block = self._header_block()
            if block is None:
                return None
            flag = block[156:157]
            if flag == b"x":
                pax, sparse_pairs = pax_records(self._special(block, "a PAX header"))
            elif flag == b"g":
                # Go's reader hands a global header out as a member, containerd ignores it; what stood before it is gone.
                self._special(block, "a PAX global header")
                pax, sparse_pairs, long_name, long_link = {}, [], b"", b""
            elif flag == b"L":
                long_name = self._special(block, "a GNU long name").split(b"\0", 1)[0]
            elif flag == b"K":
                long_link = self._special(block, "a GNU long link").split(b"\0", 1)[0]
            else:
                return self._member_header(block, pax, sparse_pairs, long_name, long_link)

    def _header_block(self) -> bytes | None:
        block = self._take(BLOCK)
        if not block:
            return None
        if block == _ZERO:
            following = self._take(BLOCK)
            if following in (b"", _ZERO):
                return None
            raise CorruptError(f"tar archive goes on after a block of zeros at byte {self._offset - BLOCK}")
        if len(block) != BLOCK:
            raise CorruptError(f"tar archive ends at byte {self._offset}, within a header")
        if not is_sound(block):
            raise CorruptError(
                f"tar header at byte {self._offset - BLOCK} has a wrong checksum: the archive is damaged or no tar"
            )
        return block

    def _special(self, block: bytes, what: str) -> bytes:
        size = number(block[124:136], "size")
        if not 0 <= size <= HEADER_MAX:
            raise CorruptError(f"tar archive: {what} of {size} bytes; at most {HEADER_MAX} are accepted")
        content = self._need(size + -size % BLOCK, what)
        return content[:size]

    def _member_header(
        self, block: bytes, pax: dict[bytes, bytes], pairs: list[bytes], long_name: bytes, long_link: bytes
    ) -> TarHeader:
        header = parse_block(block)
        if pax:
            apply_pax(header, pax)
        header.name = long_name or header.name
        header.linkname = long_link or header.linkname
        if header.type == b"\0":
            header.type = b"5" if header.name.endswith(b"/") else b"0"
        self._member = header.name
        stored = 0 if header.type[0] in _HEADER_ONLY else header.size
        if not 0 <= stored <= SIZE_MAX:
            raise CorruptError(f"tar archive: {header.name[:200]!r} has a size of {header.size} bytes")
        self._padding = -stored % BLOCK
        self._stored = stored
        runs = self._sparse(block, header, pax, pairs)
        if runs is None:
            self._runs = [(0, stored)]
        else:
            self._runs = runs_of(runs, header, self._stored)
            self.hole_bytes += header.size - self._stored
            header.type = b"0"
        return header

    def _sparse(
        self, block: bytes, header: TarHeader, pax: dict[bytes, bytes], pairs: list[bytes]
    ) -> list[tuple[int, int]] | None:
        """The (offset, length) data runs of a sparse file, None for any other; sets its name and full size."""
        if header.type == b"S":
            header.size = number(block[483:495], "size of a sparse file")
            return self._old_sparse(block)
        if header.type not in (b"0", b"7"):
            return None
        version = (pax.get(b"GNU.sparse.major"), pax.get(b"GNU.sparse.minor"))
        is_map = b"GNU.sparse.map" in pax or bool(pairs)
        if version == (b"1", b"0"):
            in_data = True
        elif version in ((b"0", b"0"), (b"0", b"1")) or (version == (None, None) and is_map):
            in_data = False
        else:
            return None
        header.name = pax.get(b"GNU.sparse.name") or header.name
        full = pax.get(b"GNU.sparse.realsize") or pax.get(b"GNU.sparse.size")
        if full is not None:
            header.size = decimal(full, "size of a sparse file")
        if in_data:
            return self._map_in_data()
        numbers = pairs or [part for part in pax.get(b"GNU.sparse.map", b"").split(b",") if part]
        return pairs_of([decimal(number, "sparse map") for number in numbers])

    def _old_sparse(self, block: bytes) -> list[tuple[int, int]]:
        if block[257:265] != b"ustar  \0":
            raise CorruptError("tar archive: a sparse file without a GNU header")
        runs: list[tuple[int, int]] = []
        entries, extended, total = block[386:482], block[482], 0
        while True:
            for at in range(0, len(entries), 24):
                if entries[at] == 0:
                    break
                runs.append((number(entries[at : at + 12], "sparse map"), number(entries[at + 12 : at + 24], "sparse map")))
            if not extended:
                return runs
            total += BLOCK
            if total > SPARSE_MAX:
                raise CorruptError(f"tar archive: a sparse map of more than {SPARSE_MAX} bytes")
            more = self._need(BLOCK, "a sparse map")
            entries, extended = more[:504], more[504]

    def _map_in_data(self) -> list[tuple[int, int]]:
        """Version 1.0: decimal numbers, one a line, before the data, padded to a block."""
        text = b""
        wanted = 1
        numbers: list[int] = []
        total = 0
        while len(numbers) < wanted:
            if b"\n" not in text:
                if self._stored < BLOCK or total >= SPARSE_MAX:
                    raise CorruptError(f"tar archive: the sparse map of {self._member[:200]!r} does not end")
                text += self._need(BLOCK, "a sparse map")
                self._stored -= BLOCK
                total += BLOCK
            *lines, text = text.split(b"\n")
            for line in lines:
                if len(numbers) == wanted:
                    break
                numbers.append(decimal(line, "sparse map"))
                if len(numbers) == 1:
                    wanted = 1 + 2 * numbers[0]
        return pairs_of(numbers[1:])
