"""Cuts the files of a tree: each large one on its own, the small ones run together in walk order.

The chunk lists are known only when all chunks have been encoded, so they are put into the `Content` objects by `finish`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from snapshotter.build.chunk import ByteReader, CutChunk, Cutter, Cutting, assign
from snapshotter.build.encoder import ParallelEncoder
from snapshotter.build.entries import Content


class FileCutter:
    """Cuts files through one encoder."""

    def __init__(self, cutting: Cutting, encoder: ParallelEncoder) -> None:
        """`encoder` takes the chunks; the caller ends it."""
        self._align = cutting.align
        self._cutter = Cutter(cutting)
        self._encoder = encoder
        self._runs: list[tuple[Sequence[Content], list[CutChunk]]] = []

    def stands_alone(self, size: int) -> bool:
        """Whether a file of `size` bytes is cut on its own."""
        return self._align is not None and size >= self._align

    def cut_alone(self, content: Content, reader: ByteReader) -> None:
        """Cut one file; `reader` is read to its end."""
        self._cut([content], reader)

    def cut_together(self, contents: Iterable[Content], open_content: Callable[[Content], ByteReader]) -> None:
        """Cut the files that are not cut yet as one stream, in the order given."""
        rest = [content for content in contents if content.chunks is None]
        if rest:
            self._cut(rest, _Concatenated(open_content(content) for content in rest))

    def finish(self) -> None:
        """Wait for the chunks, and give each content its chunk list."""
        self._encoder.flush()
        for contents, chunks in self._runs:
            parts = assign([content.size for content in contents], chunks)
            for content, part in zip(contents, parts, strict=True):
                content.chunks = part
        self._runs = []

    def _cut(self, contents: Sequence[Content], reader: ByteReader) -> None:
        run: list[CutChunk] = []
        self._runs.append((contents, run))
        for raw in self._cutter.cut(reader):
            self._encoder.put(raw, run)


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
