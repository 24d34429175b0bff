"""Asking what the kernel has in memory."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from snapshotter.chunkstore.pagecache import PageCacheReader, page_count, resident_pages


def test_a_file_that_was_just_written_is_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(5 * mmap.PAGESIZE + 1))
    with path.open("rb") as file:
        assert resident_pages(file.fileno(), path.stat().st_size) == page_count(path.stat().st_size) == 6


def test_a_file_without_content_in_memory_is_not_and_asking_changes_nothing(tmp_path: Path) -> None:
    """A hole at its end that nobody has read."""
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, 4 * mmap.PAGESIZE)
    with path.open("rb") as file:
        assert [resident_pages(file.fileno(), 4 * mmap.PAGESIZE) for _ in range(3)] == [0, 0, 0]


def test_a_part_is_read_where_all_of_the_file_is_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = bytes(range(256)) * 40
    path.write_bytes(content)
    reader = PageCacheReader(64)
    with path.open("rb") as file:
        assert reader.part_resident(file.fileno(), len(content), 5000, 64) == content[5000:5064]
        assert reader.part_resident(file.fileno(), len(content), 5000, 1000) == content[5000:6000], "longer than its memory"
        assert reader.part_resident(file.fileno(), len(content), len(content) - 1, 2) is None, "the file ends"
    os.truncate(path, len(content) + mmap.PAGESIZE)
    with path.open("rb") as file:
        assert reader.part_resident(file.fileno(), len(content) + mmap.PAGESIZE, 5000, 64) is None


def test_what_cannot_be_mapped_is_not_there() -> None:
    read, write = os.pipe()
    try:
        assert resident_pages(read, 100) == 0
    finally:
        os.close(read)
        os.close(write)
