"""Blocks have the digests that hashlib gives them, however many there are and whether or not they are hashed in lanes."""

from __future__ import annotations

import hashlib
import random

import pytest

from snapshotter.format import blockhash
from snapshotter.format.blockhash import LANES, hash_blocks


@pytest.mark.parametrize("in_lanes", [False, blockhash.HAS_LANES])
@pytest.mark.parametrize("size", [1, 64, 256, 4096])
def test_the_digests_are_those_of_sha256(size: int, in_lanes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockhash, "HAS_LANES", in_lanes)
    data = memoryview(random.Random(size).randbytes(size * 5 * LANES))
    for count in range(5 * LANES):
        blocks = [data[at : at + size] for at in range(0, size * count, size)]
        assert hash_blocks(iter(blocks)) == b"".join(hashlib.sha256(block).digest() for block in blocks)
