"""Damages files where they lie on the disk, beneath their file system. For use inside the virtual machine."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from snapshotter.chunkstore.pagecache import resident_pages

DEVICE = Path("/dev/disk/data")
_FIBMAP = 1  # linux/fs.h: the number of the disk's block that holds a block of a file
_BLOCK = 4096


def flip_on_disk(path: Path, offset: int) -> None:
    """Change one bit of a file's byte where it lies on the disk, beneath the file system; and have the kernel forget it."""
    os.sync()
    with path.open("rb") as file:
        answer = bytearray(int.to_bytes(offset // _BLOCK, 4, "little"))
        fcntl.ioctl(file, _FIBMAP, answer)
    block = int.from_bytes(answer, "little")
    assert block, "the file has no block there"
    with DEVICE.open("r+b", buffering=0) as device:
        place = block * _BLOCK + offset % _BLOCK
        byte = os.pread(device.fileno(), 1, place)
        os.pwrite(device.fileno(), bytes([byte[0] ^ 0x10]), place)
        os.fsync(device.fileno())
    forget(path)


def forget(path: Path) -> None:
    """Have the kernel forget what it has of a file's content. What a processor has just read it may not drop at once."""
    deadline = time.monotonic() + 30
    while _is_cached(path):
        assert time.monotonic() < deadline, f"the kernel keeps {path}"
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")


def _is_cached(path: Path) -> bool:
    with path.open("rb") as file:
        return resident_pages(file.fileno(), os.fstat(file.fileno()).st_size) > 0
