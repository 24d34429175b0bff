"""No byte of a cached file is believed unchecked: by the kernel where it is sealed, by its hash wherever it was not."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from snapshotter.chunkstore import chunkfiles, directory, pagecache
from snapshotter.chunkstore.directory import ChunkDirectory
from snapshotter.chunkstore.marks import Marks
from snapshotter.chunkstore.publish import TEMPORARY
from snapshotter.errors import CorruptError
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.verity import verity_digest
from tests.support.sealing import FakeSealing

RAW = b"a chunk" * 3000
DIGEST = sha256(RAW)
FLIPPED = RAW[:5000] + bytes([RAW[5000] ^ 4]) + RAW[5001:]


@pytest.fixture
def kernel() -> FakeSealing:
    return FakeSealing()


@pytest.fixture
def sealed(tmp_path: Path, kernel: FakeSealing) -> ChunkDirectory:
    chunks = ChunkDirectory(tmp_path, sealing=kernel)
    chunks.store(DIGEST, RAW)
    return chunks


def named(digest: Digest) -> bytes | None:
    """What an image names that is as it should be."""
    return verity_digest(RAW) if digest == DIGEST else None


def misnamed(digest: Digest) -> bytes | None:
    """What a hostile image names."""
    return bytes(32)


def flip(path: str) -> None:
    """Change a bit of the file, and set its times back."""
    before = os.stat(path)
    with open(path, "r+b") as file:
        file.write(FLIPPED)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def no_hashing(data: bytes) -> Digest:
    raise AssertionError("hashed, though the kernel checks it")


# Without the kernel's help.


def test_what_this_process_stored_is_not_believed_once_it_was_written_to(tmp_path: Path) -> None:
    chunks = ChunkDirectory(tmp_path)
    chunks.store(DIGEST, RAW)
    assert chunks.load(DIGEST) == RAW
    flip(chunks.file(DIGEST))
    with pytest.raises(CorruptError, match="does not match its name"):
        chunks.load(DIGEST)
    assert chunks.load(DIGEST) is None


def test_what_is_all_in_the_page_cache_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ChunkDirectory(tmp_path).store(DIGEST, RAW)
    chunks = ChunkDirectory(tmp_path)
    assert chunks.load(DIGEST) == RAW
    monkeypatch.setattr(directory, "sha256", no_hashing)
    assert chunks.load(DIGEST) == RAW


def test_what_comes_from_the_disk_is_hashed_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = ChunkDirectory(tmp_path)
    chunks.store(DIGEST, RAW)
    hashed: list[bytes] = []

    def count(data: bytes) -> Digest:
        hashed.append(data)
        return sha256(data)

    monkeypatch.setattr(directory, "sha256", count)
    monkeypatch.setattr(pagecache, "resident_pages", lambda descriptor, size: 0)
    assert [chunks.load(DIGEST), chunks.load(DIGEST)] == [RAW, RAW]
    assert hashed == [RAW, RAW]


def test_a_file_system_that_cannot_tell_is_taken_for_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = ChunkDirectory(tmp_path)
    chunks.store(DIGEST, RAW)

    def refuse(*arguments: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "preadv", refuse)
    flip(chunks.file(DIGEST))
    with pytest.raises(CorruptError):
        chunks.load(DIGEST)


def test_what_is_at_hand_is_checked_like_all_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ChunkDirectory(tmp_path).store(DIGEST, RAW)
    chunks = ChunkDirectory(tmp_path)
    assert chunks.at_hand(DIGEST) == RAW
    assert chunks.at_hand(sha256(b"none")) is None
    flip(chunks.file(DIGEST))
    assert chunks.at_hand(DIGEST) is None
    with pytest.raises(CorruptError):
        chunks.load(DIGEST)


def test_what_is_hashed_now_may_have_come_from_anywhere_and_what_is_not_may_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a file's pages are is asked only of one that was hashed before."""
    ChunkDirectory(tmp_path).store(DIGEST, RAW)
    chunks = ChunkDirectory(tmp_path)
    monkeypatch.setattr(pagecache, "resident_pages", lambda descriptor, size: 0)
    assert chunks.at_hand(DIGEST) == RAW
    assert chunks.at_hand(DIGEST) is None


def test_what_a_disk_has_to_be_asked_for_is_not_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = ChunkDirectory(tmp_path)
    chunks.store(DIGEST, RAW)
    long = bytes(directory.AT_HAND_MAX + 1)
    chunks.store(sha256(long), long)
    assert chunks.at_hand(sha256(long)) is None
    monkeypatch.setattr(pagecache, "resident_pages", lambda descriptor, size: 0)
    assert chunks.at_hand(DIGEST) is None


# With marks of what was hashed before.


def marked(root: Path) -> ChunkDirectory:
    return ChunkDirectory(root, marks=Marks.of(root))


LONG = bytes(range(256)) * (directory.PART_MAX // 256)


def test_of_a_long_chunk_a_part_is_at_hand(tmp_path: Path) -> None:
    digest = sha256(LONG)
    marked(tmp_path).store(digest, LONG)
    chunks = marked(tmp_path)
    for offset, length in ((0, 1), (4095, 4097), (len(LONG) - 5, 5), (0, len(LONG))):
        assert chunks.part(digest, offset, length) == LONG[offset : offset + length]
    assert chunks.part(digest, len(LONG) - 5, 6) is None, "the chunk is not so long"
    assert chunks.part(sha256(b"none"), 0, 1) is None


def test_no_part_is_at_hand_of_what_has_changed_anywhere(tmp_path: Path) -> None:
    """Before it is seen by this process, and afterwards."""
    digest = sha256(LONG)
    marked(tmp_path).store(digest, LONG)
    seen = marked(tmp_path)
    assert seen.part(digest, 0, 1) == LONG[:1]
    flip(seen.file(digest))
    for chunks in (seen, marked(tmp_path)):
        assert chunks.part(digest, len(LONG) - 1, 1) is None
    with pytest.raises(CorruptError):
        seen.load(digest)


def test_no_part_is_at_hand_of_what_takes_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To hash it by sha256, to read it, or to have the disk read it; when it is seen to be right it is."""
    digest, longer = sha256(LONG), LONG + b"x"
    ChunkDirectory(tmp_path).store(digest, LONG)
    unmarked = ChunkDirectory(tmp_path)
    assert unmarked.part(digest, 0, 9) is None
    assert unmarked.load(digest) == LONG
    assert unmarked.part(digest, 7, 9) == LONG[7:16]
    unmarked.store(sha256(longer), longer)
    assert unmarked.part(sha256(longer), 0, 9) is None
    monkeypatch.setattr(pagecache, "resident_pages", lambda descriptor, size: 0)
    assert unmarked.part(digest, 7, 9) is None


def test_what_an_earlier_process_stored_is_not_hashed_by_sha256_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marked(tmp_path).store(DIGEST, RAW)
    monkeypatch.setattr(directory, "sha256", no_hashing)
    assert marked(tmp_path).load(DIGEST) == RAW
    assert marked(tmp_path).at_hand(DIGEST) == RAW


@pytest.mark.parametrize("read", [ChunkDirectory.load, ChunkDirectory.at_hand])
def test_what_an_earlier_process_hashed_is_not_hashed_by_sha256_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[ChunkDirectory, Digest], bytes | None]
) -> None:
    ChunkDirectory(tmp_path).store(DIGEST, RAW)  # without a mark
    assert read(marked(tmp_path), DIGEST) == RAW
    monkeypatch.setattr(directory, "sha256", no_hashing)
    assert read(marked(tmp_path), DIGEST) == RAW


@pytest.mark.parametrize("after_a_read", [False, True])
def test_a_marked_file_in_which_a_bit_flipped_is_not_served(tmp_path: Path, after_a_read: bool) -> None:
    marked(tmp_path).store(DIGEST, RAW)
    chunks = marked(tmp_path)
    if after_a_read:
        assert chunks.load(DIGEST) == RAW
    flip(chunks.file(DIGEST))
    assert chunks.at_hand(DIGEST) is None
    with pytest.raises(CorruptError, match="does not match its name"):
        chunks.load(DIGEST)


def test_what_was_written_to_a_file_while_it_was_marked_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ChunkDirectory(tmp_path).store(DIGEST, RAW)
    chunks = marked(tmp_path)
    set_mark = Marks.set

    def set_and_flip(self: Marks, digest: Digest, descriptor: int, raw: bytes) -> None:
        set_mark(self, digest, descriptor, raw)
        flip(chunks.file(DIGEST))

    monkeypatch.setattr(Marks, "set", set_and_flip)
    assert chunks.load(DIGEST) == RAW
    assert chunks.at_hand(DIGEST) is None
    with pytest.raises(CorruptError):
        chunks.load(DIGEST)


def test_what_the_kernel_checks_gets_no_mark(tmp_path: Path, kernel: FakeSealing) -> None:
    chunks = ChunkDirectory(tmp_path, sealing=kernel, marks=Marks.of(tmp_path))
    chunks.store(DIGEST, RAW)
    assert os.listxattr(chunks.file(DIGEST)) == []


# Sealed.


def test_what_is_sealed_is_at_hand_once_the_seal_was_seen(sealed: ChunkDirectory, tmp_path: Path, kernel: FakeSealing) -> None:
    assert sealed.at_hand(DIGEST) == RAW
    later = ChunkDirectory(tmp_path, sealing=kernel)
    assert later.at_hand(DIGEST) is None
    assert later.load(DIGEST, named) == later.at_hand(DIGEST) == RAW


def test_a_chunk_is_sealed_before_it_gets_its_name(sealed: ChunkDirectory, kernel: FakeSealing) -> None:
    assert [Path(name).parent.name for name in kernel.names] == [TEMPORARY]
    assert sealed.load(DIGEST) == RAW


def test_a_chunk_that_cannot_be_sealed_is_not_kept(tmp_path: Path, kernel: FakeSealing) -> None:
    kernel.refuse = OSError(errno.ENOSPC, "no space left")
    chunks = ChunkDirectory(tmp_path, sealing=kernel)
    with pytest.raises(OSError, match="no space"):
        chunks.store(DIGEST, RAW)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_is_sealed_as_the_image_names_it_is_not_hashed(
    tmp_path: Path, sealed: ChunkDirectory, kernel: FakeSealing, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_a_start = ChunkDirectory(tmp_path, sealing=kernel)
    monkeypatch.setattr(directory, "sha256", no_hashing)
    assert after_a_start.load(DIGEST, named) == RAW
    assert after_a_start.load(DIGEST, named) == RAW


@pytest.mark.parametrize("verity_of", [None, misnamed, lambda digest: None], ids=["nothing", "wrong", "unknown"])
def test_what_no_image_vouches_for_is_hashed_and_the_name_has_the_last_word(
    verity_of: directory.VerityOf | None, tmp_path: Path, sealed: ChunkDirectory, kernel: FakeSealing
) -> None:
    assert ChunkDirectory(tmp_path, sealing=kernel).load(DIGEST, verity_of) == RAW


def test_another_file_that_is_sealed_under_the_name_is_dropped(tmp_path: Path, kernel: FakeSealing) -> None:
    impostor = ChunkDirectory(tmp_path, sealing=kernel)
    impostor.store(DIGEST, FLIPPED)
    with pytest.raises(CorruptError):
        ChunkDirectory(tmp_path, sealing=kernel).load(DIGEST, named)
    assert impostor.load(DIGEST) is None


def test_what_an_earlier_daemon_did_not_seal_is_hashed_then_sealed(tmp_path: Path, kernel: FakeSealing) -> None:
    ChunkDirectory(tmp_path).store(DIGEST, RAW)
    chunks = ChunkDirectory(tmp_path, sealing=kernel)
    assert chunks.load(DIGEST, named) == RAW
    assert list(kernel.sealed.values()) == [verity_digest(RAW)]


def test_what_the_kernel_refuses_to_read_is_dropped(sealed: ChunkDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, size: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(chunkfiles, "read", refuse)
    with pytest.raises(CorruptError, match="fails fs-verity"):
        sealed.load(DIGEST, named)
    assert not sealed.exists(DIGEST)
