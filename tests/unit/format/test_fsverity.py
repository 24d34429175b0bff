"""The kernel's fs-verity: what is asked of it, and what is made of its answers. With a kernel that has it: tests/vm."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
from pathlib import Path

import pytest

from snapshotter.errors import FailedPreconditionError
from snapshotter.format import fsverity
from snapshotter.format.fsverity import Mode


@pytest.fixture
def descriptor(tmp_path: Path) -> int:
    (tmp_path / "file").write_bytes(b"content")
    return os.open(tmp_path / "file", os.O_RDONLY)


def answering(monkeypatch: pytest.MonkeyPatch, answer: object) -> list[tuple[int, bytes]]:
    """Has the kernel answer every ioctl so; the requests that are made."""
    asked = []

    def ioctl(descriptor: int, request: int, argument: bytes | bytearray) -> int:
        asked.append((request, bytes(argument)))
        if isinstance(answer, OSError):
            raise answer
        if isinstance(answer, bytes) and isinstance(argument, bytearray):
            argument[:] = answer
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    return asked


def test_whether_it_is_supported_is_what_fsverity_utils_find(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"content")
    done = subprocess.run(["fsverity", "enable", tmp_path / "other"], check=False, capture_output=True)
    assert fsverity.is_supported(tmp_path) == (done.returncode == 0)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_file_is_sealed_with_sha256_and_blocks_of_4096_bytes(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch, None)
    fsverity.enable(descriptor)
    [(request, argument)] = asked
    assert request == 1 << 30 | 128 << 16 | ord("f") << 8 | 133  # _IOW('f', 133, struct fsverity_enable_arg)
    assert len(argument) == 128
    assert struct.unpack_from("<IIII", argument) == (1, 1, 4096, 0)
    assert not any(argument[16:])
    os.close(descriptor)


def test_a_sealed_file_stays_as_it_is(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, FileExistsError(errno.EEXIST, "exists"))
    fsverity.enable(descriptor)
    os.close(descriptor)


@pytest.mark.parametrize(
    ("answer", "measured"),
    [
        (struct.pack("<HH", 1, 32) + b"d" * 32, b"d" * 32),
        (struct.pack("<HH", 2, 32) + b"d" * 32, None),
        (OSError(errno.ENODATA, "not sealed"), None),
        (OSError(errno.EOVERFLOW, "sha512"), None),
        (OSError(errno.ENOTTY, "no such request"), None),
        (OSError(errno.EOPNOTSUPP, "no feature"), None),
    ],
)
def test_only_a_digest_of_our_parameters_counts(
    answer: object, measured: bytes | None, descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, answer)
    assert fsverity.measure(descriptor) == measured
    os.close(descriptor)


def test_other_failures_are_not_hidden(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, OSError(errno.EIO, "disk"))
    with pytest.raises(OSError, match="disk"):
        fsverity.measure(descriptor)
    os.close(descriptor)


def test_off_does_not_even_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsverity, "is_supported", lambda directory: 1 / 0)
    assert not fsverity.is_wanted(Mode.OFF, tmp_path / "root")


@pytest.mark.parametrize("mode", [Mode.AUTO, Mode.REQUIRE])
def test_it_is_used_where_it_is(mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsverity, "is_supported", lambda directory: True)
    assert fsverity.is_wanted(mode, tmp_path / "root")


def test_where_it_is_not_auto_goes_on_and_require_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsverity, "is_supported", lambda directory: False)
    assert not fsverity.is_wanted(Mode.AUTO, tmp_path)
    with pytest.raises(FailedPreconditionError, match="-O verity") as error:
        fsverity.is_wanted(Mode.REQUIRE, tmp_path)
    assert str(tmp_path) in str(error.value)
