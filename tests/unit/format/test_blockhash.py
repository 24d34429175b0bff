"""Blocks have the digests that hashlib gives them, however many there are and whether or not they are hashed in lanes."""

from __future__ import annotations

import hashlib
import random

import pytest

from snapshotter.format import blockhash
from snapshotter.format.blockhash import LANES, hash_beside, hash_blocks


@pytest.mark.parametrize("in_lanes", [False, blockhash.HAS_LANES])
@pytest.mark.parametrize("size", [1, 64, 256, 4096])
def test_the_digests_are_those_of_sha256(size: int, in_lanes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockhash, "HAS_LANES", in_lanes)
    data = memoryview(random.Random(size).randbytes(size * 5 * LANES))
    for count in range(5 * LANES):
        blocks = [data[at : at + size] for at in range(0, size * count, size)]
        assert hash_blocks(iter(blocks)) == b"".join(hashlib.sha256(block).digest() for block in blocks)


@pytest.mark.parametrize("in_lanes", [False, blockhash.HAS_LANES])
@pytest.mark.parametrize("count", [0, 1, LANES // 2 - 1, LANES // 2, 3 * LANES])
def test_files_and_blocks_beside_one_another(count: int, in_lanes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockhash, "HAS_LANES", in_lanes)
    drawn = random.Random(count)
    files = [memoryview(drawn.randbytes(drawn.choice([0, 1, 255, 256, 257, 4096, 9000]))) for _ in range(count)]
    for blocks in (0, 1, LANES, 20 * LANES, 200 * LANES):
        pieces = [drawn.randbytes(256) for _ in range(blocks)]
        digests, hashes = hash_beside(files, pieces, 256)
        assert digests == [hashlib.sha256(data).digest() for data in files]
        assert hashes == b"".join(hashlib.sha256(piece).digest() for piece in pieces)
