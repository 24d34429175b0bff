"""Files that are one stream get the chunk lists that they would get together, and are not kept until all of them are read."""

from __future__ import annotations

import gc
import io
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.build.chunk import ByteReader, CutChunk, assign
from snapshotter.build.entries import Content
from snapshotter.build.onestream import OneStream
from snapshotter.build.shelf import ChunkLists
from snapshotter.format.digest import sha256


def opened(content: Content) -> ByteReader:
    return io.BytesIO(bytes(content.size))


def read(stream: OneStream, size: int) -> None:
    """Take so many bytes of it."""
    while size:
        size -= stream.readinto(memoryview(bytearray(size)))


@given(st.lists(st.integers(1, 400), max_size=30), st.lists(st.integers(1, 300)), st.data())
def test_lists_are_those_of_files_that_are_run_together(sizes: list[int], lengths: list[int], data: st.DataObject) -> None:
    rest = sum(sizes) - sum(lengths)
    lengths += [rest] if rest > 0 else []
    while sum(lengths) > sum(sizes):
        lengths[-1] -= min(lengths[-1], sum(lengths) - sum(sizes))
        lengths = [length for length in lengths if length]
    chunks = [CutChunk(sha256(b"%d" % number), length, number % 3 == 0) for number, length in enumerate(lengths)]
    with closing(ChunkLists()) as lists:
        contents = [Content(size) for size in sizes]
        for content in contents:
            if data.draw(st.booleans()):
                content.put_away(lists)
        stream = OneStream(iter(contents), opened)
        pending = iter(chunks)
        while some := list(islice(pending, data.draw(st.integers(1, 4)))):
            read(stream, sum(chunk.length for chunk in some))
            stream.chunks.extend(some)
            stream.settle()
        assert stream.readinto(memoryview(bytearray(1))) == 0
        assert [list(content.chunks or ()) for content in contents] == [list(each) for each in assign(sizes, chunks)]


def test_chunks_that_no_file_was_read_for_are_refused() -> None:
    stream = OneStream(iter([Content(3)]), opened)
    read(stream, 3)
    stream.chunks.append(CutChunk(sha256(b""), 4))
    with pytest.raises(ValueError, match="files end"):
        stream.settle()


def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    def peak(files: int) -> int:
        gc.collect()
        with closing(ChunkLists(tmp_path)) as lists:

            def contents() -> Iterator[Content]:
                for number in range(files):
                    content = Content(10, directory=b"/some/directory", name=b"%d" % number)
                    content.put_away(lists)
                    yield content

            stream = OneStream(contents(), opened)
            buffer = memoryview(bytearray(1 << 14))
            tracemalloc.start()
            while count := stream.readinto(buffer):
                stream.chunks.append(CutChunk(sha256(b""), count))
                stream.settle()
            found = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            return found

    # 12 bytes each are in the table of lists, which may have half as much room again.
    assert peak(40_000) - peak(10_000) < 20 * 30_000
