"""What is demanded of the machine's processors, of a file in the device's place: the kernel takes a number in binary."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from snapshotter.mount.processors import Processors


def test_zero_microseconds_while_awake_and_the_kernels_default_after(tmp_path: Path) -> None:
    device = tmp_path / "cpu_dma_latency"
    device.touch()
    processors = Processors(device)
    processors.keep_awake(True)
    processors.keep_awake(False)
    processors.close()
    assert struct.unpack("=2i", device.read_bytes()) == (0, 2_000_000_000)


def test_nothing_is_demanded_where_there_is_no_device(tmp_path: Path) -> None:
    processors = Processors(tmp_path / "missing")
    processors.keep_awake(True)
    processors.close()
    assert not list(tmp_path.iterdir())


def test_nothing_is_demanded_any_more_of_a_device_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "cpu_dma_latency"
    device.touch()
    processors = Processors(device)
    asked = []

    def refuse(descriptor: int, data: bytes) -> int:
        asked.append(data)
        raise OSError(errno.EIO, "refused")

    monkeypatch.setattr(os, "write", refuse)
    processors.keep_awake(True)
    processors.keep_awake(True)
    assert len(asked) == 1
    processors.close()
