"""Keeps of a large tree in a file what is not looked at: the leaves of directories that were not touched for a while.

A leaf takes 550 bytes in memory, and a directory of them that is put away takes 300. Directories stay in memory, as does every
leaf that may have a second name, since which object it is says which inode it is. Trees that are not large stay as they are.
"""

from __future__ import annotations

import marshal
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from snapshotter.build.entries import Content, Node
from snapshotter.build.spool import AppendFile
from snapshotter.format.model import Kind

LEAVES_MAX = 1 << 15
"""Most leaves in memory, of the directories that are put away at all: 18 MB."""

RETURNS_MAX = 4
"""A directory that came back so often stays until its layer has been read: nobody can make a tar that is read for ever."""

_WINDOW = 1 << 16

_Record = tuple[Any, ...]
"""Name, the fields of the node, and those of its content, if it has one: what `_record` makes."""


class Shelf:
    """Where leaves are put away, of several trees. One thread changes trees, others may read them meanwhile.

    What is written is read by this process alone, and the file has no name, so its records are `marshal`'s, which is fast.
    """

    def __init__(self, directory: Path | None = None, limit: int = LEAVES_MAX) -> None:
        """`directory`: where files are made; by default, where the system keeps temporary files. `limit`: see `LEAVES_MAX`."""
        self._limit = limit
        self._directory = directory
        self._files: _Files | None = None  # made when they are needed: most trees need no temporary directory
        self._lock = Lock()
        # Directories that are in memory, each with how many leaves it has (or had names put in), the latest last.
        self._recent: dict[Node, int] = {}
        self._total = 0
        self._returns: dict[Node, int] = {}
        self._staying: list[Node] = []

    def added(self, directory: Node) -> None:
        """A name was put into `directory`. Nobody may hold on to a leaf of any directory now: it would be another object later.

        Raises:
            FailedPreconditionError: there is no room for what is put away.
        """
        recent = self._recent
        recent[directory] = recent.pop(directory, 0) + 1
        self._total += 1
        if self._total > self._limit:
            self._trim()

    def settle(self) -> None:
        """A tree is complete. Raises what `added` does."""
        self._returns.clear()
        for directory in self._staying:
            self._note(directory, len(directory.names()))
        self._staying.clear()
        if self._total > self._limit:
            self._trim()

    def close(self) -> None:
        """Give the space back."""
        if self._files is not None:
            self._files.records.close()
            self._files.lists.close()

    def _made(self) -> _Files:
        if self._files is None:
            self._files = _Files(AppendFile(self._directory), ChunkLists(self._directory))
        return self._files

    def _note(self, directory: Node, leaves: int) -> None:
        self._recent[directory] = leaves
        self._total += leaves

    def _trim(self) -> None:
        for directory in list(self._recent)[:-1]:
            if self._total <= self._limit // 2:
                break
            self._total -= self._recent.pop(directory)
            if self._returns.get(directory, 0) < RETURNS_MAX:
                self._put_away(directory)
            else:
                self._staying.append(directory)

    def _put_away(self, directory: Node) -> None:
        files = self._made()
        kept: dict[bytes, Node] = {}
        records = []
        for name, node in directory.names().items():
            if node.kind is Kind.DIR or node.is_shared:
                kept[name] = node
            else:
                records.append(_record(name, node, files.lists))
        if records:
            data = marshal.dumps(records)
            with self._lock:
                offset = files.records.append(data)
            directory.put_away(_Shelved(self, kept, offset, len(data)))

    def read(self, offset: int, length: int) -> list[_Record]:
        """What was put away there."""
        files = self._made()
        with self._lock:
            data = files.records.read(offset, length)
        found: list[_Record] = marshal.loads(data)  # noqa: S302  of our own making
        return found

    def node(self, record: _Record) -> Node:
        """A leaf as it was."""
        return _node(record, self._made().lists)

    def came_back(self, directory: Node, leaves: int) -> None:
        """All leaves of a directory are in memory again."""
        self._returns[directory] = self._returns.get(directory, 0) + 1
        self._note(directory, leaves)


class _Shelved:
    """See `entries.Shelved`."""

    __slots__ = ("_kept", "_length", "_offset", "_shelf")

    def __init__(self, shelf: Shelf, kept: dict[bytes, Node], offset: int, length: int) -> None:
        self._shelf = shelf
        self._kept = kept
        self._offset = offset
        self._length = length

    def _records(self) -> list[_Record]:
        return self._shelf.read(self._offset, self._length)

    def outline(self) -> Iterator[tuple[bytes, Node | None]]:
        yield from self._kept.items()
        for record in self._records():
            yield record[0], None

    def children(self) -> dict[bytes, Node]:
        node = self._shelf.node
        return self._kept | {record[0]: node(record) for record in self._records()}

    def come_back(self, directory: Node) -> dict[bytes, Node]:
        children = self.children()
        self._shelf.came_back(directory, len(children))
        return children


class ChunkLists:
    """The chunk lists of files that were put away, by number, as `chunk.ChunkList` packs them: 12 bytes each in memory."""

    def __init__(self, directory: Path | None = None) -> None:
        """`directory`: as `Shelf` has it."""
        self._file = AppendFile(directory)
        self._lock = Lock()
        self._ends = array("Q")  # where a list ends in the file, plus one; 0 where there is none yet
        self._lengths = array("I")
        self._window = b""
        self._start = 0

    def new(self) -> int:
        """The number of another file."""
        with self._lock:
            self._ends.append(0)
            self._lengths.append(0)
            return len(self._ends) - 1

    def put(self, number: int, packed: bytes) -> None:
        """The list of a file that has been cut."""
        with self._lock:
            self._ends[number] = self._file.append(packed) + len(packed) + 1
            self._lengths[number] = len(packed)

    def has(self, number: int) -> bool:
        """Whether the file has been cut."""
        return self._ends[number] > 0

    def get(self, number: int) -> bytes | None:
        """The file's list, None if it has not been cut."""
        with self._lock:
            end, length = self._ends[number] - 1, self._lengths[number]
            if end < 0:
                return None
            # Files are asked for in nearly the order in which they were cut.
            start = end - length - self._start
            if start < 0 or start + length > len(self._window):
                self._start = end - length
                self._window = self._file.read(self._start, max(length, min(_WINDOW, self._file.size - self._start)))
                start = 0
            return self._window[start : start + length]

    def close(self) -> None:
        """Give the space back."""
        self._file.close()


@dataclass(frozen=True, slots=True)
class _Files:
    """What a shelf has on disk."""

    records: AppendFile
    lists: ChunkLists


def _record(name: bytes, node: Node, lists: ChunkLists) -> _Record:
    fields = (
        name,
        int(node.kind),
        node.permissions,
        node.uid,
        node.gid,
        node.mtime,
        node.mtime_nsec,
        node.device,
        node.target,
        tuple(node.xattrs.items()),
    )
    return fields if node.content is None else (*fields, *node.content.put_away(lists))


def _node(record: _Record, lists: ChunkLists) -> Node:
    _, kind, permissions, uid, gid, mtime, mtime_nsec, device, target, xattrs, *content = record
    return Node(
        _KINDS[kind],
        permissions,
        uid,
        gid,
        mtime,
        mtime_nsec,
        device=device,
        target=target,
        content=Content.back(lists, *content) if content else None,
        xattrs=dict(xattrs) if xattrs else None,
    )


_KINDS = {int(kind): kind for kind in Kind}
