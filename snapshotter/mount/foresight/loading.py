"""Has a program brought before it is loaded: once its head is read, what the dynamic loader is going to touch of it and of all
the libraries that it needs, and its code; and of a Python module all that it imports.

The dynamic loader asks for one file after the other, and for one page after the other of each, and so does Python; what they
are going to ask for stands in the files (`elf`, `modules`). So all is fetched together, level by level, while whoever reads is
still busy with the first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

from snapshotter.chunkstore.base import ChunkRef, Foreseeing
from snapshotter.format.digest import Digest
from snapshotter.mount.foresight import companions, elf
from snapshotter.mount.foresight.elf import Program
from snapshotter.mount.foresight.modules import Module, Modules
from snapshotter.mount.foresight.places import Places
from snapshotter.mount.pieces import read_if_there
from snapshotter.mount.tree import Tree

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

PROGRAM_CODE = 4 << 20
"""Bytes of code up to which all of it is fetched, of a file that somebody opened. Python 3.11 runs 36 of its 36 chunks of code
when it starts, NumPy's largest module 25 of 36."""

LIBRARY_CODE = 2 << 20
"""Likewise of a library that comes with it: glibc 16 of 17; but LAPACK 3 of 84, libgfortran 5 of 31."""

LEVELS = 4
"""How far libraries that need libraries are followed."""

FRONT = 128 << 10
TAIL = 64 << 10
"""Bytes from the beginning and before the end of a library that are fetched before anything of it has been read."""

FILES_MAX = 64
"""Files of one program that are looked at."""

IMPORT_LEVELS = 32
"""How far modules that import modules are followed. `import numpy` is 8 levels deep."""

MODULES_MAX = 2048
"""Modules that are brought with one. `import numpy` has 124."""

REMEMBERED = 4096
"""Files of a mount that are not looked at again."""

_ROOTS = (b"lib", b"lib64", b"usr/lib", b"usr/lib64", b"usr/local/lib")
"""Where libraries are, or the directories of an architecture (``x86_64-linux-gnu``) that have them: ld.so's own list, and
Debian's. ``ld.so.cache`` would say more, but would have to be fetched first."""


class Loading:
    """Follows the programs and the Python modules of one tree; its methods may be called from several threads."""

    def __init__(self, tree: Tree, places: Places, store: Foreseeing, has: Callable[[Digest], bool]) -> None:
        """`has`: whether a chunk is on this machine."""
        self._tree = tree
        self._store = store
        self._has = has
        self._places = places
        self._modules = Modules(tree, places)
        self._lock = threading.Lock()
        self._seen: dict[int, Program | None] = {}
        """What has been looked at, and which of it are programs."""
        self._missed: dict[tuple[int, int], int] = {}
        """How often something was missed, by program and segment."""
        self._directories: list[bytes] | None = None

    def missed(self, ino: int, offset: int, length: int) -> None:
        """These bytes of file `ino` are read and not on this machine: have them brought, and what will be read with them.

        Raises:
            CorruptError, NotFoundError: the metadata break a rule of the format.
        """
        if self._store.told():
            return
        own = companions.chunks(self._tree.plan(ino, offset, length))
        more = companions.of_small_file(self._tree, self._places, ino, self._has) or self._around(ino, offset, length)
        if not set(more) <= set(own):
            self._store.expect(list(dict.fromkeys([*own, *more])))

    def begin(self, ino: int) -> None:
        """File `ino` has been read from its beginning and may be a program, or a module: have the rest brought. Waits for some
        of it.

        Raises:
            CorruptError, NotFoundError: a file or the metadata break a rule of the format.
            ChunkMissingError, SourceUnavailableError: it cannot be had.
        """
        if self._store.told() or not self._new([ino]):
            return
        started = self._load([ino])
        module = self._modules.at(ino)
        self._import(started if module is None else [module])

    def _load(self, programs: Sequence[int]) -> list[Module]:
        """Have what loading `programs` takes brought, as far as they are programs, level by level; the modules that those read
        first."""
        code: list[ChunkRef] = []
        modules: list[Module] = []
        level = list(programs)
        looked_at = 0
        for depth in range(LEVELS):
            heads = ((file, elf.parse(self._bytes(file, 0, elf.HEAD))) for file in level)
            found = {file: program for file, program in heads if program is not None}
            if not found:
                break
            with self._lock:
                self._seen.update(found)
            loaders = self._new(self._interpreters(found))
            mapped = self._chunks(found, companions.mapped)
            self._store.expect([*mapped, *(ref for file in loaders for ref in self._beginning(file))])
            longest = LIBRARY_CODE if depth else PROGRAM_CODE
            code += self._chunks(found, partial(companions.code, longest=longest))
            code += self._chunks(found, partial(companions.constants, longest=longest))
            modules += (module for file in found for module in self._modules.startup(file))
            looked_at += len(found)
            needed = self._new(self._needed(found))[: max(0, FILES_MAX - looked_at)]
            self._store.expect([ref for file in needed for ref in self._beginning(file)])
            level = [*loaders, *needed]
        modules = [module for module in modules if self._new([module.ino])]
        code += (ref for module in modules for ref in self._beginning(module.ino))
        self._store.expect(list(dict.fromkeys(code)))
        return modules

    def _import(self, modules: Sequence[Module]) -> None:
        """Have what `modules` import brought, and what that imports, level by level. What extensions need comes a level later,
        and what they import, which their constants say, another one: the modules of the next level have to come first."""
        level = modules
        loaded: list[Module] = []
        left = MODULES_MAX
        for _ in range(IMPORT_LEVELS):
            found: dict[Module, None] = {}
            for module in (*(module for module in level if not module.extension), *loaded):
                found.update(dict.fromkeys(self._modules.imported_by(module, self._telling(module))))
            fresh = [module for module in found if self._new([module.ino])][:left]
            left -= len(fresh)
            self._store.expect([ref for module in fresh for ref in self._beginning(module.ino)])
            loaded = [module for module in level if module.extension]
            self._load([module.ino for module in loaded])
            if not fresh and not loaded:
                return
            level = fresh

    def _telling(self, module: Module) -> bytes:
        """The bytes of `module` that tell what it imports."""
        if not module.extension:
            return self._bytes(module.ino, 0, companions.SMALL_FILE)
        with self._lock:
            program = self._seen.get(module.ino)
        parts = [] if program is None else companions.constants(program, PROGRAM_CODE)
        return b"".join(self._bytes(module.ino, *part) for part in parts)

    def _around(self, ino: int, offset: int, length: int) -> list[ChunkRef]:
        """What is fetched with a part of a program."""
        with self._lock:
            program = self._seen.get(ino)
            number = companions.part(program, offset, length) if program is not None else None
            if program is None or number is None:
                return []
            misses = self._missed.pop((ino, number), 0)
            self._missed[ino, number] = misses + 1
            _forget_oldest(self._missed)
        wanted = companions.around(program.segments[number], offset, length, misses, self._store.risk())
        return companions.chunks(self._tree.plan(ino, *wanted))

    def _new(self, files: Iterable[int]) -> list[int]:
        """Those of `files` that have not been looked at, which they are from now on."""
        found = []
        with self._lock:
            for file in files:
                if file not in self._seen:
                    self._seen[file] = None
                    found.append(file)
            _forget_oldest(self._seen)
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
        """All of a small file; of another one what the dynamic loader reads of nearly every library, and what tells which
        others it needs: its symbols in front, and at its end, as linkers put it, what is relocated."""
        size = self._tree.attributes(file).size
        if size <= companions.SMALL_FILE:
            return companions.chunks(self._tree.plan(file, 0, size))
        return companions.chunks([*self._tree.plan(file, 0, FRONT), *self._tree.plan(file, size - TAIL, TAIL)])

    def _bytes(self, file: int, offset: int, length: int) -> bytes:
        return b"".join(read_if_there(self._tree.plan(file, offset, length), self._store.look) or ())

    def _interpreters(self, programs: Mapping[int, Program]) -> Iterator[int]:
        """The dynamic loaders that the kernel starts in place of `programs`, as far as they are files of this tree."""
        for file, program in programs.items():
            path = elf.interpreter(program, partial(self._bytes, file))
            found = None if path is None else self._tree.resolve(path)
            if found is not None and self._tree.is_file(found):
                yield found

    def _needed(self, programs: Mapping[int, Program]) -> Iterator[int]:
        """The libraries of `programs`, as far as they are files of this tree."""
        for file, program in programs.items():
            for name in elf.needed(program, partial(self._bytes, file)):
                for directory in self._libraries():
                    found = self._tree.resolve(b"%s/%s" % (directory, name))
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


def _forget_oldest(known: dict[_Key, _Value]) -> None:
    while len(known) > REMEMBERED:
        del known[next(iter(known))]
