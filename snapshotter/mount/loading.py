"""Has a program brought before it is loaded: once its head is read, what the dynamic loader is going to touch of it and of all
the libraries that it needs, and its code.

The dynamic loader asks for one file after the other, and for one page after the other of each; what it is going to ask for
stands in the files (`elf`). So all is fetched together, level by level, while the kernel is still busy with the first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

from snapshotter.chunkstore.base import ChunkRef, ChunkStore, Foreseeing
from snapshotter.mount import companions, elf
from snapshotter.mount.elf import Program
from snapshotter.mount.pieces import read_pieces
from snapshotter.mount.tree import Tree

PROGRAM_CODE = 4 << 20
"""Bytes of code up to which all of it is fetched, of a file that somebody opened. Python 3.11 runs 36 of its 36 chunks of code
when it starts, NumPy's largest module 25 of 36."""

LIBRARY_CODE = 2 << 20
"""Likewise of a library that comes with it: glibc 16 of 17; but LAPACK 3 of 84, libgfortran 5 of 31."""

LEVELS = 4
"""How far libraries that need libraries are followed."""

FILES_MAX = 64
"""Files of one program that are looked at."""

REMEMBERED = 1024
"""Files of a mount that are not looked at again."""

_ROOTS = (b"lib", b"lib64", b"usr/lib", b"usr/lib64", b"usr/local/lib")
"""Where libraries are, or the directories of an architecture (``x86_64-linux-gnu``) that have them: ld.so's own list, and
Debian's. ``ld.so.cache`` would say more, but would have to be fetched first."""


class Loading:
    """Follows the programs of one tree; its methods may be called from several threads."""

    def __init__(self, tree: Tree, store: ChunkStore) -> None:
        self._tree = tree
        self._store = store
        self._foreseeing: Foreseeing | None = store if isinstance(store, Foreseeing) else None
        self._lock = threading.Lock()
        self._seen: dict[int, None] = {}
        self._directories: list[bytes] | None = None

    def begin(self, ino: int) -> None:
        """File `ino` has been read from its beginning and may be a program: have the rest brought. Waits for some of it.

        Raises:
            CorruptError, NotFoundError: a file or the metadata break a rule of the format.
            ChunkMissingError, SourceUnavailableError: it cannot be had.
        """
        if self._foreseeing is None:
            return
        code: list[ChunkRef] = []
        level = self._new([ino])
        looked_at = 0
        for depth in range(LEVELS):
            heads = ((file, elf.parse(self._bytes(file, 0, elf.HEAD))) for file in level)
            programs = {file: program for file, program in heads if program is not None}
            if not programs:
                break
            self._foreseeing.expect(self._chunks(programs, companions.mapped))
            longest = LIBRARY_CODE if depth else PROGRAM_CODE
            code += self._chunks(programs, partial(companions.code, longest=longest))
            looked_at += len(programs)
            level = self._new(self._needed(programs))[: max(0, FILES_MAX - looked_at)]
            self._foreseeing.expect([ref for file in level for ref in self._beginning(file)])
        self._foreseeing.expect(list(dict.fromkeys(code)))

    def _new(self, files: Iterable[int]) -> list[int]:
        """Those of `files` that have not been looked at, which they are from now on."""
        found = []
        with self._lock:
            for file in files:
                if file not in self._seen:
                    self._seen[file] = None
                    found.append(file)
            while len(self._seen) > REMEMBERED:
                del self._seen[next(iter(self._seen))]
        return found

    def _chunks(self, programs: Mapping[int, Program], parts: Callable[[Program], Sequence[tuple[int, int]]]) -> list[ChunkRef]:
        pieces = [
            piece
            for file, program in programs.items()
            for offset, length in parts(program)
            for piece in self._tree.plan(file, offset, length)
        ]
        return companions.chunks(pieces)

    def _beginning(self, file: int) -> list[ChunkRef]:
        """All of a small file, of another one its headers."""
        return companions.chunks(companions.whole_file(self._tree, file) or self._tree.plan(file, 0, elf.HEAD))

    def _bytes(self, file: int, offset: int, length: int) -> bytes:
        return b"".join(read_pieces(self._tree.plan(file, offset, length), self._store))

    def _needed(self, programs: Mapping[int, Program]) -> Iterator[int]:
        """The libraries of `programs`, and their dynamic loader, as far as they are files of this tree."""
        for file, program in programs.items():
            read = partial(self._bytes, file)
            loader = elf.interpreter(program, read)
            paths = [loader] if loader is not None else []
            paths += [b"%s/%s" % (directory, name) for name in elf.needed(program, read) for directory in self._libraries()]
            for path in paths:
                found = self._tree.resolve(path)
                if found is not None and self._tree.is_file(found):
                    yield found

    def _libraries(self) -> Sequence[bytes]:
        """The directories in which libraries are."""
        if self._directories is None:
            found: dict[int, bytes] = {}
            for root in _ROOTS:
                directory = self._tree.resolve(root)
                if directory is None:
                    continue
                found.setdefault(directory, root)
                for entry in self._tree.entries(directory):
                    if b"-linux-" in entry.name:
                        found.setdefault(entry.ino, b"%s/%s" % (root, entry.name))
            self._directories = list(found.values())
        return self._directories
