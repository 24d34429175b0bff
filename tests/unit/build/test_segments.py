"""Large messages are made in files, and nobody can tell."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from snapshotter.build import publish
from snapshotter.build.publish import seal
from snapshotter.build.segments import KEPT_MAX, SegmentFiles
from snapshotter.errors import FailedPreconditionError
from snapshotter.format.compression import METADATA_LEVEL, compress, compress_parts, decompress
from snapshotter.format.digest import sha256
from snapshotter.format.message import MessageBuilder, Room
from snapshotter.format.verity import verity_digest

PIECES = [random.Random(number).randbytes(30_000) * 2 for number in range(300)]


def message(room: Room | None) -> MessageBuilder:
    """A message of several segments, the last of which are larger than what is kept in memory."""
    built = MessageBuilder(1, 1, room)
    for slot, piece in zip(built.root.structs(0, len(PIECES), 0, 1), PIECES, strict=True):
        slot.data(0, piece)
        built.rest()
    assert built.size > 4 * KEPT_MAX
    return built


def test_a_message_in_files_is_the_same(tmp_path: Path) -> None:
    assert message(SegmentFiles(tmp_path)).to_bytes() == message(None).to_bytes()
    assert not os.listdir(tmp_path)


def test_no_room(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="missing: No such file"):
        message(SegmentFiles(tmp_path / "missing"))


def test_a_full_disk_is_told_before_it_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(FailedPreconditionError, match="No space left"):
        message(SegmentFiles(tmp_path))


def test_a_long_message_is_sealed_as_it_is_read() -> None:
    built = message(None)
    whole = built.to_bytes()
    assert len(whole) > publish.WHOLE_MAX
    sealed = seal(built)
    assert (sealed.diff_id, sealed.verity) == (sha256(whole), verity_digest(whole))
    assert decompress(sealed.stored, len(whole)) == whole
    # Where its parts end is nothing that the digest of the blob could depend on.
    for unit in (100_000, 1 << 20, len(whole)):
        parts = [whole[start : start + unit] for start in range(0, len(whole), unit)]
        assert b"".join(compress_parts(parts, len(whole), METADATA_LEVEL)) == sealed.stored


def test_an_ordinary_message_is_sealed_as_a_whole() -> None:
    built = MessageBuilder(1, 1)
    built.root.data(0, PIECES[0])
    assert seal(built).stored == compress(built.to_bytes(), METADATA_LEVEL)
