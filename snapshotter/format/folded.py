"""A message that is kept for long and read a little: compressed in memory, block by block, where most of it lies idle.

What is read is unfolded, and the blocks that were unfolded last stay so, up to a number that all messages of a process share.
Of a message's end nothing is kept at all where its file has it, and who reads that may wait for a disk: the table of fs-verity
digests, a third of a message, which does not compress. What comes from the file is compared with what it was.

Each block also has the beginning of the next one, so that what is short always lies within one.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from collections import deque
from typing import Any

from snapshotter.errors import CorruptError
from snapshotter.format.compression import compress, decompress
from snapshotter.format.reader import MessageReader, Shape

BLOCK = 1 << 16
"""Bytes of a block: unfolding one takes 60 µs."""
OVERLAP = 1 << 10
"""Bytes of the next one that it has: the longest name, and every struct."""
UNFOLDED_MAX = 96
"""Blocks that stay unfolded, for all messages that share them: 6 MiB."""
FILED_MIN = 32 << 20
"""Longer messages stay in their files, in bytes: those of layers of 150,000 inodes and more. Of others a tenth is in memory."""
_LEVEL = 1


class Unfolded:
    """The blocks of several messages that were unfolded last. Safe to use from several threads."""

    def __init__(self, limit: int = UNFOLDED_MAX) -> None:
        """`limit`: how many there are at most."""
        self._limit = limit
        self._order: deque[tuple[dict[int, bytes], int]] = deque()
        self._lock = threading.Lock()

    def keep(self, blocks: dict[int, bytes], number: int, raw: bytes) -> None:
        """Put a block among those of its message, and take away what was put there first, of whichever message."""
        with self._lock:
            if number not in blocks:
                blocks[number] = raw
                self._order.append((blocks, number))
                if len(self._order) > self._limit:
                    others, oldest = self._order.popleft()
                    del others[oldest]

    def drop(self, blocks: dict[int, bytes]) -> None:
        """Take away all blocks of a message."""
        with self._lock:
            self._order = deque(each for each in self._order if each[0] is not blocks)
            blocks.clear()

    def __len__(self) -> int:
        return len(self._order)


class Filed:
    """The bytes of a file, as a `MessageReader` that is to be folded takes them: none of them is kept."""

    def __init__(self, descriptor: int, size: int) -> None:
        """The first `size` bytes of the file `descriptor`."""
        self._descriptor = descriptor
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, end, _ = part.indices(self._size)
        try:
            found = os.pread(self._descriptor, end - start, start) if end > start else b""
        except OSError as error:
            raise CorruptError(f"rootfs metadata cannot be read: {error}") from error
        if len(found) != max(end - start, 0):
            raise CorruptError("rootfs metadata is shorter than it was when it was opened")
        return found


class FoldedReader(MessageReader):
    """Reads a message that is folded."""

    def __init__(
        self, data: bytes | mmap.mmap | Filed, unfolded: Unfolded, descriptor: int | None = None, kept: int | None = None
    ) -> None:
        """`kept`: how many bytes of the message `data` are kept in memory, all if it is None; the rest is read from the file
        `descriptor`, which has the message and is the reader's to close."""
        super().__init__(data)
        self.size = len(data)
        self._unfolded = unfolded
        self._descriptor = descriptor
        self._raw: dict[int, bytes] = {}
        self._folded: list[bytes] = []
        self._hashes: list[bytes] = []
        for start in range(0, len(data), BLOCK):
            block = data[start : start + BLOCK + OVERLAP]
            if kept is None or start < kept:
                # a copy: what compresses makes room for a whole block and gives back what it does not need, in holes
                self._folded.append(bytes(memoryview(compress(block, _LEVEL))))
            else:
                self._hashes.append(hashlib.sha256(block).digest())
        self._data = b""

    def close(self) -> None:
        """Let go of the message."""
        self._unfolded.drop(self._raw)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _fields(self, shape: Shape, start: int) -> tuple[Any, ...]:
        block = self._raw.get(start // BLOCK)
        if block is None:
            block = self._unfold(start // BLOCK)
        return shape.unpack_from(block, start % BLOCK)

    def _cut(self, start: int, end: int) -> bytes:
        parts = []
        while True:
            number, first = divmod(start, BLOCK)
            block = self._raw.get(number)
            if block is None:
                block = self._unfold(number)
            if end - number * BLOCK <= len(block):
                parts.append(block[first : first + end - start])
                return parts[0] if len(parts) == 1 else b"".join(parts)
            parts.append(block[first:BLOCK])
            start += BLOCK - first

    def _word(self, at: int) -> int:
        number, first = divmod(at * 8, BLOCK)
        block = self._raw.get(number)
        if block is None:
            block = self._unfold(number)
        return int.from_bytes(block[first : first + 8], "little")

    def _unfold(self, number: int) -> bytes:
        is_kept = number < len(self._folded)
        raw = decompress(self._folded[number], BLOCK + OVERLAP) if is_kept else self._read(number)
        self._unfolded.keep(self._raw, number, raw)
        return raw

    def _read(self, number: int) -> bytes:
        if self._descriptor is None:
            raise ValueError("a message was read after it was closed")
        try:
            raw = os.pread(self._descriptor, BLOCK + OVERLAP, number * BLOCK)
        except OSError as error:
            raise CorruptError(f"rootfs metadata cannot be read again: {error}") from error
        if hashlib.sha256(raw).digest() != self._hashes[number - len(self._folded)]:
            raise CorruptError("rootfs metadata is not what it was when it was opened")
        return raw
