"""fs-verity digests, computed in user space exactly as the kernel's ``FS_IOC_MEASURE_VERITY`` reports them.

Parameters are fixed: sha256, 4096-byte blocks, no salt. The rules are the kernel's (Documentation/filesystems/fsverity.rst,
"Merkle tree" and "fs-verity descriptor"): blocks are zero-padded and hashed, hashes fill blocks of the level above, and the
file's digest is the hash of the descriptor that holds the root hash and the size.
"""

from __future__ import annotations

import hashlib
import struct

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
            self._hashes += _hash_blocks(memoryview(self._rest))
            view = view[missing:]
        full = len(view) - len(view) % BLOCK_SIZE
        self._hashes += _hash_blocks(view[:full])
        self._rest = bytes(view[full:])

    def digest(self) -> bytes:
        """The 32-byte fs-verity digest of all bytes so far."""
        level = bytes(self._hashes) + _hash_blocks(memoryview(self._rest))
        return _describe(self._size, _root(level) if self._size else bytes(DIGEST_SIZE))


def verity_digest(data: bytes | bytearray | memoryview) -> bytes:
    """The 32-byte fs-verity digest of a file that holds `data`."""
    view = memoryview(data)
    size = len(view)
    root = bytes(DIGEST_SIZE) if size == 0 else _root(_hash_blocks(view))
    return _describe(size, root)


def _hash_blocks(view: memoryview) -> bytes:
    sha256 = hashlib.sha256
    full = len(view) - len(view) % BLOCK_SIZE
    hashes = [sha256(view[at : at + BLOCK_SIZE]).digest() for at in range(0, full, BLOCK_SIZE)]
    if full != len(view):
        hashes.append(sha256(bytes(view[full:]).ljust(BLOCK_SIZE, b"\0")).digest())
    return b"".join(hashes)


def _root(level: bytes) -> bytes:
    while len(level) > DIGEST_SIZE:
        level = _hash_blocks(memoryview(level))
    return level


def _describe(size: int, root: bytes) -> bytes:
    descriptor = _DESCRIPTOR.pack(1, _SHA256, BLOCK_SIZE.bit_length() - 1, 0, 0, size, root.ljust(64, b"\0"), b"")
    return hashlib.sha256(descriptor).digest()
