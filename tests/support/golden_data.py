"""File contents that depend on a seed alone, as in tests/golden/upstream/trees.py."""

from __future__ import annotations

import hashlib


def noise(seed: str, size: int) -> bytes:
    """`size` incompressible bytes."""
    blocks = (hashlib.sha256(f"{seed}:{i}".encode()).digest() for i in range(-(-size // 32)))
    return b"".join(blocks)[:size]


def text(seed: str, size: int) -> bytes:
    """`size` compressible bytes: numbered lines with a few digits of noise."""
    lines, length, i = [], 0, 0
    while length < size:
        line = f"{i:08d} {seed} {hashlib.sha256(f'{seed}/{i}'.encode()).hexdigest()[:6]} the same words again and again\n"
        lines.append(line.encode())
        length += len(line)
        i += 1
    return b"".join(lines)[:size]
