"""fs-verity digests are the kernel's: as Debian's ``fsverity digest`` prints them."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from snapshotter.format.digest import sha256
from snapshotter.format.verity import VerityHasher, both_digests, verity_digest, verity_digests

SIZES = [0, 1, 4095, 4096, 4097, 8192, 128 * 4096, 128 * 4096 + 1, 300_000, 129 * 128 * 4096]


@pytest.mark.parametrize("size", SIZES)
def test_the_digest_is_that_of_fsverity_utils(size: int, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes((b"0123456789abcdef\n" * (size // 17 + 1))[:size])
    printed = subprocess.run(
        ["fsverity", "digest", "--compact", "--hash-alg=sha256", "--block-size=4096", path],
        check=True,
        capture_output=True,
        text=True,
    )
    assert verity_digest(path.read_bytes()).hex() == printed.stdout.strip()


def test_the_digest_of_the_empty_file_is_pinned() -> None:
    assert verity_digest(b"").hex() == "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95"


@pytest.mark.parametrize("step", [1000, 4096, 5000, 1 << 20])
@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 600_000])
def test_parts_have_the_digest_of_the_whole(size: int, step: int) -> None:
    data = random.Random(size).randbytes(size)
    hasher = VerityHasher()
    for start in range(0, size, step):
        hasher.update(memoryview(data)[start : start + step])
    assert hasher.digest() == hasher.digest() == verity_digest(data)


def test_files_that_are_hashed_together_have_the_digests_that_each_has_alone() -> None:
    files = [random.Random(size).randbytes(size) for size in SIZES[:-1]]
    assert verity_digests(files) == list(map(verity_digest, files))
    assert verity_digests([]) == []
    assert both_digests(files) == (list(map(sha256, files)), verity_digests(files))
