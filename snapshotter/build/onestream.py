"""All files of a tree as one stream, of which each file gets its chunk list as soon as its last chunk has been encoded.

Of files that were read and whose chunks are on their way 16 bytes each are kept, where their lists are kept elsewhere: what is
on its way can be the bytes of very many small ones.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterator

from snapshotter.build.chunk import ByteReader, ChunkList, CutChunk
from snapshotter.build.entries import Content, Lists
from snapshotter.format.model import FileChunk

_DROPPED = 1 << 14
"""So many files that have their lists are dropped at a time."""


class OneStream:
    """Reads files one after another (a `ByteReader`), and gives out the chunks that are cut from what it has read."""

    def __init__(self, contents: Iterator[Content], open_content: Callable[[Content], ByteReader]) -> None:
        """`contents` are taken one by one; none of them is empty. Each is opened when the one before it has ended."""
        self._contents = contents
        self._open = open_content
        self._reader: ByteReader | None = None
        self._waiting = _Waiting()
        self._parts: list[FileChunk] = []  # of the first file that waits
        self.chunks: list[CutChunk] = []
        """Where the chunks are to be put, in order, as they have been encoded; `settle` takes them."""

    def readinto(self, buffer: memoryview, /) -> int:
        """See `ByteReader`."""
        while True:
            if self._reader is None:
                content = next(self._contents, None)
                if content is None:
                    return 0
                self._reader = self._open(content)
                self._waiting.add(content)
            count = self._reader.readinto(buffer)
            if count:
                return count
            self._reader = None

    def settle(self) -> None:
        """Give out the chunks that are there.

        Raises:
            ValueError: they have more bytes than were read.
        """
        waiting, parts = self._waiting, self._parts
        for digest, length, compressed in self.chunks:
            used = 0
            while used < length:
                if not waiting.missing:
                    raise ValueError("the files end before the chunks do")
                taken = min(waiting.missing, length - used)
                parts.append(FileChunk(digest, used, taken, compressed))
                used += taken
                if waiting.take(taken):
                    waiting.done(ChunkList(parts))
                    parts.clear()
        self.chunks.clear()


class _Waiting:
    """Files that wait for chunks, in order, in columns."""

    def __init__(self) -> None:
        self._first = 0
        self._sizes = array("Q")
        self._numbers = array("q")  # in `_lists`; -1 of a file that is in `_contents`
        self._contents: deque[Content] = deque()
        self._lists: Lists | None = None
        self.missing = 0
        """Bytes of the first file that no chunk was given for; 0 where no file waits."""

    def add(self, content: Content) -> None:
        """Another file waits."""
        place = content.list_place
        if place is None:
            self._contents.append(content)
            self._numbers.append(-1)
        else:
            self._lists, number = place
            self._numbers.append(number)
        self._sizes.append(content.size)
        if len(self._sizes) == self._first + 1:
            self.missing = content.size

    def take(self, count: int) -> bool:
        """So many of the `missing` bytes are there. Whether these were all."""
        self.missing -= count
        return not self.missing

    def done(self, chunks: ChunkList) -> None:
        """The first file, of which nothing is missing, is made of `chunks`."""
        number = self._numbers[self._first]
        if number < 0:
            self._contents.popleft().chunks = chunks
        elif self._lists is not None:
            self._lists.put(number, chunks.packed)
        self._first += 1
        if self._first == _DROPPED:
            del self._sizes[:_DROPPED], self._numbers[:_DROPPED]
            self._first = 0
        self.missing = self._sizes[self._first] if self._first < len(self._sizes) else 0
