"""File trees of which it is noted what is expected to be read."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from snapshotter.chunkstore.base import ChunkRef
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.model import DirEntry, FileChunk, Inode, Kind, RootfsContent
from snapshotter.format.rootfs import Rootfs
from snapshotter.format.writer import encode
from snapshotter.mount.tree import Tree
from tests.support.chunks import StubStore

Files = Mapping[str, bytes]


class Foreseeing(StubStore):
    """A store that notes what is expected."""

    def __init__(self, files: Files) -> None:
        super().__init__([part for content in files.values() for part in parts(content)])
        self.expected: list[ChunkRef] = []

    is_told = False
    bulks = 0

    def told(self) -> bool:
        return self.is_told

    def risk(self) -> int:
        return 0

    def expect(self, wanted: Sequence[ChunkRef]) -> None:
        self.expected += wanted

    def bulk(self) -> None:
        self.bulks += 1

    def look(self, wanted: Sequence[ChunkRef]) -> list[bytes]:
        return self.get(wanted)


def parts(content: bytes) -> list[bytes]:
    """Chunks of 16 KiB, each its own."""
    return [content[start : start + 16384] for start in range(0, len(content), 16384)]


def make_tree(files: Files, links: Mapping[str, str] | None = None) -> tuple[Tree, dict[str, int]]:
    """A tree numbered as a walk numbers it, and the numbers by path; a directory is what a path has before a slash."""
    nodes: list[Inode] = []
    numbers: dict[str, int] = {}
    links = links or {}

    def number(path: str) -> int:
        numbers[path] = len(nodes) + 1
        nodes.append(Inode(len(nodes) + 1, Kind.DIR))
        return len(nodes)

    def add(path: str) -> None:
        ino = numbers[path]
        if path in files:
            chunks = [FileChunk(sha256(part), 0, len(part)) for part in parts(files[path])]
            nodes[ino - 1] = Inode(ino, Kind.FILE, 0o755, chunks=chunks)
        elif path in links:
            nodes[ino - 1] = Inode(ino, Kind.LNK, 0o777, target=links[path].encode())
        else:
            start = f"{path}/" if path else ""
            below = sorted({p[len(start) :].split("/")[0] for p in (*files, *links) if p.startswith(start)})
            entries = [DirEntry(number(start + name), name.encode()) for name in below]
            nodes[ino - 1] = Inode(ino, Kind.DIR, 0o755, entries=entries)
            for name in below:
                add(start + name)

    number("")
    add("")
    return Tree(Rootfs.open(encode(RootfsContent([nodes])))), numbers


def names(files: Files, refs: list[ChunkRef]) -> list[str]:
    """The files that alone have one of `refs`, in their order."""
    owners: dict[Digest, set[str]] = {}
    for path, content in files.items():
        for part in parts(content):
            owners.setdefault(sha256(part), set()).add(path)
    return list(dict.fromkeys(next(iter(owners[ref.digest])) for ref in refs if len(owners[ref.digest]) == 1))


def numbered(count: int, size: int, directory: str = "d") -> dict[str, bytes]:
    """`count` files of `size` bytes each in one directory."""
    return {f"{directory}/{number:03}": random.Random(number).randbytes(size) for number in range(count)}
