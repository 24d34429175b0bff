"""A mark vouches for bytes that were hashed, under the name that they had, for one cache, until the machine starts again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.chunkstore import marks
from snapshotter.chunkstore.marks import ATTRIBUTE, KEY_FILE, MARKED_MIN, Marks
from snapshotter.chunkstore.publish import TEMPORARY
from snapshotter.format.digest import sha256

RAW = b"a chunk!" * 3000
DIGEST = sha256(RAW)
FLIPPED = RAW[:5000] + bytes([RAW[5000] ^ 4]) + RAW[5001:]


@pytest.fixture
def ours(tmp_path: Path) -> Marks:
    return opened(tmp_path)


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_bytes(RAW)
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def opened(directory: Path, boot_id: Path = marks.BOOT_ID) -> Marks:
    made = Marks.of(directory, boot_id)
    assert made is not None
    return made


def test_what_was_marked_fits(ours: Marks, descriptor: int) -> None:
    ours.set(DIGEST, descriptor, RAW)
    assert ours.fits(DIGEST, descriptor, RAW)


def test_what_was_not_marked_does_not(ours: Marks, descriptor: int) -> None:
    assert not ours.fits(DIGEST, descriptor, RAW)


def test_another_process_of_the_cache_believes_the_mark(ours: Marks, descriptor: int, tmp_path: Path) -> None:
    ours.set(DIGEST, descriptor, RAW)
    assert opened(tmp_path).fits(DIGEST, descriptor, RAW)


@pytest.mark.parametrize("read", [FLIPPED, RAW[:-1], RAW + b"\0", RAW[:MARKED_MIN]])
def test_bytes_that_are_not_those_do_not_fit(ours: Marks, descriptor: int, read: bytes) -> None:
    ours.set(DIGEST, descriptor, RAW)
    assert not ours.fits(DIGEST, descriptor, read)


def test_the_same_bytes_under_another_name_do_not_fit(ours: Marks, descriptor: int) -> None:
    ours.set(DIGEST, descriptor, RAW)
    assert not ours.fits(sha256(b"another"), descriptor, RAW)


@pytest.mark.parametrize("forged", [b"", bytes(16), bytes(15), bytes(300)])
def test_other_marks_do_not_fit(ours: Marks, descriptor: int, forged: bytes) -> None:
    os.setxattr(descriptor, ATTRIBUTE, forged)
    assert not ours.fits(DIGEST, descriptor, RAW)


def test_a_mark_of_another_cache_does_not_fit(descriptor: int, tmp_path: Path) -> None:
    opened(tmp_path / "another").set(DIGEST, descriptor, RAW)
    assert not opened(tmp_path).fits(DIGEST, descriptor, RAW)


def test_a_mark_means_nothing_when_the_machine_has_started_again(ours: Marks, descriptor: int, tmp_path: Path) -> None:
    ours.set(DIGEST, descriptor, RAW)
    (tmp_path / "boot_id").write_text("65f77bf6-12ab-4d9f-ae0a-8a0ce19d9e6b\n")
    assert not opened(tmp_path, tmp_path / "boot_id").fits(DIGEST, descriptor, RAW)


def test_short_content_gets_no_mark(ours: Marks, descriptor: int) -> None:
    short = RAW[: MARKED_MIN - 1]
    ours.set(sha256(short), descriptor, short)
    assert os.listxattr(descriptor) == []


def test_the_secret_is_the_users_alone(ours: Marks, tmp_path: Path) -> None:
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == [KEY_FILE, TEMPORARY]
    assert not list((tmp_path / TEMPORARY).iterdir())


def test_what_a_process_that_dies_leaves_is_where_it_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(path: Path) -> None:
        raise OSError

    monkeypatch.setattr(os, "unlink", die)
    opened(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name not in (KEY_FILE, TEMPORARY)] == []
    assert len(list((tmp_path / TEMPORARY).iterdir())) == 1


@pytest.mark.parametrize("content", [b"", bytes(31), bytes(33)])
def test_a_secret_that_is_not_whole_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / KEY_FILE).write_bytes(content)
    (tmp_path / KEY_FILE).chmod(0o600)
    opened(tmp_path)
    assert len((tmp_path / KEY_FILE).read_bytes()) == 32


def test_a_secret_that_others_can_read_is_replaced(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).write_bytes(bytes(32))
    (tmp_path / KEY_FILE).chmod(0o644)
    opened(tmp_path)
    assert (tmp_path / KEY_FILE).read_bytes() != bytes(32)


def test_without_the_number_of_the_start_there_are_no_marks(tmp_path: Path) -> None:
    assert Marks.of(tmp_path, tmp_path / "missing") is None


def test_without_poly1305_there_are_no_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise AttributeError("EVP_MAC_fetch")

    monkeypatch.setattr(marks, "Poly1305", missing)
    assert Marks.of(tmp_path) is None


def test_a_file_that_cannot_be_marked_is_left_alone(ours: Marks) -> None:
    read, write = os.pipe()
    try:
        ours.set(DIGEST, read, RAW)
        assert not ours.fits(DIGEST, read, RAW)
    finally:
        os.close(read)
        os.close(write)
