"""Cuts the files of a tree: each one that is not small on its own, small ones of neighbouring directories run together.

A chunk list is known when its chunks have been encoded, and is put into its `Content` object then, by `finish` at the latest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from snapshotter.build.chunk import ByteReader, CutChunk, Cutter, Cutting, assign
from snapshotter.build.encoder import Encoder
from snapshotter.build.entries import Content
from snapshotter.build.onestream import OneStream

WAITING_MAX = 1 << 15
"""Most files whose chunks are awaited: all that is in flight can be the bytes of very many small ones."""


class FileCutter:
    """Cuts files through one encoder."""

    def __init__(self, cutting: Cutting, encoder: Encoder) -> None:
        """`encoder` takes the chunks; the caller ends it."""
        self._align = cutting.align
        self._group = cutting.group
        self._large = cutting.large
        self._cutter = Cutter(cutting)
        self._large_cutter = self._cutter if cutting.large is None else Cutter(cutting.of_large())
        self._encoder = encoder
        # The contents that were cut together, their chunks so far, and how many there will be.
        self._runs: deque[tuple[Sequence[Content], list[CutChunk], int]] = deque()
        self._waiting = 0  # so many contents are in runs

    def stands_alone(self, size: int) -> bool:
        """Whether a file of `size` bytes is cut on its own."""
        return self._align is not None and size >= self._align

    def cut_alone(self, content: Content, reader: ByteReader) -> None:
        """Cut one file; `reader` is read to its end."""
        is_large = self._large is not None and content.size >= self._large
        self._cut([content], reader, self._large_cutter if is_large else self._cutter)

    def cut_together(self, directories: Iterable[Iterable[Content]], open_content: Callable[[Content], ByteReader]) -> None:
        """Cut the files that are not cut yet in runs, in the order given; a run ends only where a directory does."""
        if self._group is None:
            rest = (content for contents in directories for content in contents if not content.is_cut)
            self._cut_as_one(rest, open_content)
            return
        run: list[Content] = []
        size = 0
        for contents in directories:
            for content in contents:
                if not content.is_cut:
                    run.append(content)
                    size += content.size
            if size >= self._group:
                self._cut(run, _Concatenated(map(open_content, run)), self._cutter)
                run, size = [], 0
        if run:
            self._cut(run, _Concatenated(map(open_content, run)), self._cutter)

    def _cut_as_one(self, contents: Iterator[Content], open_content: Callable[[Content], ByteReader]) -> None:
        """Cut all `contents` as one stream, of which nothing is kept but what is on its way."""
        run = OneStream(contents, open_content)
        for length, times in self._cutter.cut(run, self._encoder):
            self._encoder.add(length, run.chunks, times)
            run.settle()
        self._encoder.flush()
        run.settle()

    def finish(self) -> None:
        """Wait for the chunks, and give each content its chunk list."""
        self._encoder.flush()
        self._settle()

    def _cut(self, contents: Sequence[Content], reader: ByteReader, cutter: Cutter) -> None:
        run: list[CutChunk] = []
        count = 0
        for length, times in cutter.cut(reader, self._encoder):
            self._encoder.add(length, run, times)
            count += times
        self._runs.append((contents, run, count))
        self._waiting += len(contents)
        if self._waiting > WAITING_MAX:
            self._encoder.flush()
        self._settle()

    def _settle(self) -> None:
        """Give the contents whose chunks have all been encoded their chunk lists; chunks come back in the order of the data."""
        while self._runs and len(self._runs[0][1]) == self._runs[0][2]:
            contents, chunks, _ = self._runs.popleft()
            self._waiting -= len(contents)
            for content, part in zip(contents, assign([content.size for content in contents], chunks), strict=True):
                content.chunks = part


class _Concatenated:
    """Readers, one after another; each is opened when the one before it has ended."""

    def __init__(self, readers: Iterator[ByteReader]) -> None:
        self._readers = readers
        self._current: ByteReader | None = next(readers, None)

    def readinto(self, buffer: memoryview, /) -> int:
        while self._current is not None:
            count = self._current.readinto(buffer)
            if count:
                return count
            self._current = next(self._readers, None)
        return 0
