"""A message is the same wherever it is kept, and is refused if it is another one."""

from __future__ import annotations

import io
import mmap
from pathlib import Path

import pytest

from snapshotter.build import readmessage
from snapshotter.build.readmessage import hold, hold_compressed, pieces
from snapshotter.errors import CorruptError, FailedPreconditionError
from snapshotter.format.compression import compress
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.verity import verity_digest
from snapshotter.registry.base import Descriptor
from snapshotter.registry.verified import verified
from tests.support.golden_data import noise

DATA = noise("message", 3_000_000)


@pytest.fixture(params=[16 << 20, 1 << 20])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes that are kept in memory: all of it, or less."""
    monkeypatch.setattr(readmessage, "KEPT_MAX", request.param)
    return int(request.param)


def test_it_is_what_it_was(kept: int, tmp_path: Path) -> None:
    message = hold(pieces(io.BytesIO(DATA)), tmp_path)
    assert isinstance(message.data, mmap.mmap) == (kept < len(DATA))
    assert message.size == len(DATA)
    assert message.to_bytes() == b"".join(map(bytes, message.parts())) == DATA
    assert (message.digest(), message.verity()) == (sha256(DATA), verity_digest(DATA))
    assert not list(tmp_path.iterdir())


def test_only_a_large_one_needs_a_temporary_directory(kept: int, tmp_path: Path) -> None:
    if kept < len(DATA):
        with pytest.raises(FailedPreconditionError, match="missing: No such file"):
            hold(pieces(io.BytesIO(DATA)), tmp_path / "missing")
    else:
        assert hold(pieces(io.BytesIO(DATA)), tmp_path / "missing").to_bytes() == DATA


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("data", [DATA, b"", b"x" * 2_000_000])
def test_it_is_decompressed(data: bytes, tmp_path: Path) -> None:
    assert hold_compressed(io.BytesIO(compress(data)), 3 << 20, tmp_path).to_bytes() == data


@pytest.mark.parametrize(
    ("stored", "problem"),
    [
        (b"", "not a zstd frame"),
        (b"no frame at all, but long enough", "not a zstd frame"),
        (compress(DATA)[:-1000], "instead of 3000000"),
        (compress(DATA) + b"more", "cannot decode"),
        (compress(DATA) + compress(b"more"), "more bytes instead of 3000000"),
        (compress(bytes(4_000_000)), "at most 3145728"),
    ],
)
def test_what_is_no_frame_is_refused(stored: bytes, problem: str) -> None:
    with pytest.raises(CorruptError, match=problem):
        hold_compressed(io.BytesIO(stored), 3 << 20)


def test_another_blob_is_called_that() -> None:
    stored = bytearray(compress(DATA))
    blob = Descriptor("", sha256(bytes(stored)), len(stored))
    stored[1000] ^= 255
    stored[-1] ^= 255
    with pytest.raises(CorruptError, match=r"is corrupt: its content has the digest"):
        hold_compressed(verified(io.BytesIO(stored), blob, "there", lambda: None), 3 << 20)
    assert blob.digest != Digest(bytes(32))
