"""fs-verity digests, computed in user space exactly as the kernel's ``FS_IOC_MEASURE_VERITY`` reports them.

Parameters are fixed: sha256, 4096-byte blocks, no salt. The rules are the kernel's (Documentation/filesystems/fsverity.rst,
"Merkle tree" and "fs-verity descriptor"): blocks are zero-padded and hashed, hashes fill blocks of the level above, and the
file's digest is the hash of the descriptor that holds the root hash and the size.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from itertools import chain

from snapshotter.format.blockhash import hash_beside, hash_blocks

BLOCK_SIZE = 4096
DIGEST_SIZE = 32

_DESCRIPTOR = struct.Struct("<BBBBIQ64s32s144x")
"""``struct fsverity_descriptor``: version, hash algorithm, log2 of the block size, salt size, reserved (signature size),
data size, root hash, salt, reserved: 256 bytes."""

_SHA256 = 1  # FS_VERITY_HASH_ALG_SHA256, linux/fsverity.h


class VerityHasher:
    """The digest of a file whose bytes come in parts. A 128th of the file's size is in memory."""

    def __init__(self) -> None:
        """Of no bytes at first."""
        self._size = 0
        self._rest = b""
        self._hashes = bytearray()

    def update(self, data: bytes | memoryview) -> None:
        """The next bytes."""
        self._size += len(data)
        view = memoryview(data)
        if self._rest:
            missing = BLOCK_SIZE - len(self._rest)
            self._rest += view[:missing]
            if len(self._rest) < BLOCK_SIZE:
                return
            self._hashes += hash_blocks([self._rest])
            view = view[missing:]
        full = len(view) - len(view) % BLOCK_SIZE
        self._hashes += hash_blocks(_blocks(view[:full]))
        self._rest = bytes(view[full:])

    def digest(self) -> bytes:
        """The 32-byte fs-verity digest of all bytes so far."""
        level = bytes(self._hashes) + hash_blocks(_blocks(memoryview(self._rest)))
        while len(level) > DIGEST_SIZE:
            level = hash_blocks(_blocks(memoryview(level)))
        return _describe(self._size, level or bytes(DIGEST_SIZE))


def verity_digest(data: bytes | bytearray | memoryview) -> bytes:
    """The 32-byte fs-verity digest of a file that holds `data`."""
    return verity_digests([data])[0]


def verity_digests(files: Sequence[bytes | bytearray | memoryview]) -> list[bytes]:
    """The 32-byte fs-verity digest of each of `files`. The blocks of all of them are hashed together, which is faster."""
    views = [memoryview(data) for data in files]
    return _trees(views, hash_blocks(chain.from_iterable(map(_blocks, views))))


def both_digests(files: Sequence[bytes | bytearray | memoryview]) -> tuple[list[bytes], list[bytes]]:
    """The sha256 of each of `files`, and its fs-verity digest. All of it is hashed together, which is faster still."""
    views = [memoryview(data) for data in files]
    digests, hashes = hash_beside(views, list(chain.from_iterable(map(_blocks, views))), BLOCK_SIZE)
    return digests, _trees(views, hashes)


def _trees(files: Sequence[memoryview], hashes: bytes) -> list[bytes]:
    """The fs-verity digests of `files`, from the hashes of their blocks."""
    levels = list(files)
    pending = [row for row, data in enumerate(files) if len(data)]
    while pending:
        end = 0
        for row in pending:
            start, end = end, end + -(-len(levels[row]) // BLOCK_SIZE) * DIGEST_SIZE
            levels[row] = memoryview(hashes)[start:end]
        pending = [row for row in pending if len(levels[row]) > DIGEST_SIZE]
        hashes = hash_blocks(chain.from_iterable(_blocks(levels[row]) for row in pending))
    return [_describe(len(data), bytes(root) or bytes(DIGEST_SIZE)) for data, root in zip(files, levels, strict=True)]


def _blocks(view: memoryview) -> Iterator[bytes | memoryview]:
    """The blocks of a level, the last one filled up with zeros."""
    full = len(view) - len(view) % BLOCK_SIZE
    for at in range(0, full, BLOCK_SIZE):
        yield view[at : at + BLOCK_SIZE]
    if full != len(view):
        yield bytes(view[full:]).ljust(BLOCK_SIZE, b"\0")


def _describe(size: int, root: bytes) -> bytes:
    descriptor = _DESCRIPTOR.pack(1, _SHA256, BLOCK_SIZE.bit_length() - 1, 0, 0, size, root.ljust(64, b"\0"), b"")
    return hashlib.sha256(descriptor).digest()
