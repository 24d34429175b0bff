"""Where the Python modules of a tree are: which files an import is going to read.

Where Python looks is in no file (sys.path), so it is told from what has been imported: a module's package stands in a
directory that others are found in, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from snapshotter.mount.foresight import pyc, pyso, pysource
from snapshotter.mount.foresight.places import Places
from snapshotter.mount.foresight.pyc import Import
from snapshotter.mount.tree import Tree

ROOTS_MAX = 16
"""Directories with modules that are remembered; the one that was seen first is kept, since it has Python's own."""

REMEMBERED = 1024
"""Names of a tree whose files are known."""

ENTRIES_MAX = 8192
"""Names in a directory up to which it is looked through for what an extension names."""

_PACKAGES_MAX = 16  # how deep packages are in each other
_CACHE = b"__pycache__"
_EXTENSIONS = b"lib-dynload"
_COMPILED, _SOURCE, _EXTENSION = b".pyc", b".py", b".so"

_PYTHON = re.compile(rb"(?:lib)?python(3\.[0-9]{1,2})(?:\Z|\.so)")

FROZEN = frozenset(
    b"abc codecs genericpath importlib._bootstrap importlib._bootstrap_external importlib.machinery importlib.util io "
    b"ntpath os os.path posixpath runpy site stat zipimport _bootstrap _bootstrap_external _collections_abc "
    b"_sitebuiltins".split()
)
"""Modules that CPython has in itself and reads from no file, from 3.11 on (Python/frozen.c), as imports name them."""

STARTUP = (b"encodings", b"encodings.aliases", b"encodings.utf_8", b"sitecustomize", b"re")
"""What every start of CPython reads of its library (Lib/encodings, Lib/site.py), besides what is frozen; and the module that
most others come to import, with enum, functools, collections and others: 0.2 MB, on their way while the interpreter starts."""


class Module(NamedTuple):
    """A file with a Python module: the directory that it counts as being in, and of a compiled one for which Python: the
    ``cpython-311`` in ``site.cpython-311.pyc``; of source nothing. An `extension` is a library that has the module."""

    ino: int
    directory: int
    tag: bytes
    extension: bool = False


class Modules:
    """The modules of one tree. Safe to use from several threads.

    What it raises is `CorruptError` or `NotFoundError`, where the tree breaks a rule.
    """

    def __init__(self, tree: Tree, places: Places) -> None:
        self._tree = tree
        self._places = places
        self._roots: list[int] = []
        self._listed: dict[int, frozenset[bytes]] = {}
        """The modules of some of them, by name."""
        self._known: dict[tuple[int, bytes, bytes], tuple[Module, int | None] | None] = {}

    def at(self, ino: int) -> Module | None:
        """The module in file `ino`; None where it is none, or nobody knows where it is."""
        place = self._places.of(ino)
        if place is None:
            return None
        if place.name.endswith(_SOURCE):
            return Module(ino, place.directory, b"")
        _, tag, suffix = (b"..%s" % place.name).rsplit(b".", 2)
        above = self._places.of(place.directory)
        if above is None or above.name != _CACHE or not tag or suffix != _COMPILED[1:]:
            return None
        return Module(ino, above.directory, tag)

    def startup(self, ino: int) -> list[Module]:
        """What program or library `ino` is going to read first, if it is a Python, as its name and the library below or beside
        its directory say."""
        place = self._places.of(ino)
        version = _PYTHON.match(place.name) if place is not None else None
        above = self._places.of(place.directory) if place is not None and version is not None else None
        if place is None or version is None or above is None:
            return []
        for directory in (self._below(above.directory, b"lib"), place.directory, above.directory):
            library = self._below(directory, b"python" + version[1]) if directory is not None else None
            if library is not None:
                self._remember(library)
                tag = b"cpython-" + version[1].replace(b".", b"")
                return list(dict.fromkeys(found for name in STARTUP for found in self._walk(library, name, tag)[0]))
        return []

    def imported_by(self, module: Module, data: bytes) -> list[Module]:
        """The files that loading `module` is going to read, in the order of its imports. `data`: its bytes, or of an extension
        its constants."""
        self._remember(self._root(module))
        if module.extension:
            wanted = [one for one in pyso.imports(data) if self._is_listed(one.name.partition(b".")[0])]
        else:
            wanted = pyc.imports(data) if module.tag else pysource.imports(data)
        found: dict[Module, None] = {}
        for one in wanted:
            if not (module.tag and one.name in FROZEN):
                found.update(dict.fromkeys(self._found(module, one)))
        found.pop(module, None)
        return list(found)

    def _is_listed(self, name: bytes) -> bool:
        """Whether any of the directories that are known has a module of this name that is not in Python itself."""
        return name not in FROZEN and any(name in self._names(root) for root in list(self._roots))

    def _names(self, root: int) -> frozenset[bytes]:
        if root not in self._listed:
            below = (self._below(root, name) for name in (_CACHE, _EXTENSIONS))
            places = (root, *(place for place in below if place is not None))
            found = [entry.name.partition(b".")[0] for place in places for entry in self._tree.entries(place)[:ENTRIES_MAX]]
            if len(self._listed) > ROOTS_MAX:
                self._listed = {}
            self._listed[root] = frozenset(found)
        return self._listed[root]

    def _found(self, module: Module, wanted: Import) -> Iterator[Module]:
        """The files of one import: of the packages on the way, of the module, and of what it may be to have of modules."""
        if wanted.level:
            start: int | None = module.directory
            for _ in range(min(wanted.level, _PACKAGES_MAX) - 1):
                above = self._places.of(start) if start is not None else None
                start = above.directory if above is not None else None
            starts = [start] if start is not None else []
        else:
            starts = list(self._roots)
        for root in starts:
            files, package = self._walk(root, wanted.name, module.tag)
            if not files and wanted.name:
                continue
            yield from files
            if package is not None:
                for name in wanted.names:
                    if not (module.tag and name in FROZEN):
                        yield from self._walk(package, name, module.tag)[0][:1]
            return

    def _walk(self, directory: int, dotted: bytes, tag: bytes) -> tuple[list[Module], int | None]:
        """The files of module `dotted`, found from `directory` on, and if it is a package, the directory of its modules."""
        files: list[Module] = []
        package: int | None = directory
        for name in dotted.split(b".")[:_PACKAGES_MAX] if dotted else ():
            found = self._find(package, name, tag) if package is not None else None
            if found is None:
                return files, None
            files.append(found[0])
            package = found[1]
        return files, package

    def _find(self, directory: int, name: bytes, tag: bytes) -> tuple[Module, int | None] | None:
        key = (directory, name, tag)
        if key in (known := self._known):
            return known[key]
        found = self._look(directory, name, tag)
        if len(known) >= REMEMBERED:
            self._known = known = {}  # not cleared: another thread may be about to read what it has just looked for
        known[key] = found
        return found

    def _look(self, directory: int, name: bytes, tag: bytes) -> tuple[Module, int | None] | None:
        """The file of module `name` of `directory`, in the order of importlib's FileFinder: package, extension, module."""
        package = self._below(directory, name)
        if package is not None:
            init = self._file(package, b"__init__", tag)
            return (Module(init, package, tag), package) if init is not None else None
        extension = self._extension(directory, name)
        if extension is not None:
            return Module(extension, directory, tag, extension=True), None
        file = self._file(directory, name, tag)
        return (Module(file, directory, tag), None) if file is not None else None

    def _file(self, directory: int, name: bytes, tag: bytes) -> int | None:
        if not tag:
            return self._regular(directory, name + _SOURCE)
        cache = self._below(directory, _CACHE)
        return None if cache is None else self._regular(cache, b"%s.%s%s" % (name, tag, _COMPILED))

    def _extension(self, directory: int, name: bytes) -> int | None:
        for place in (directory, self._below(directory, _EXTENSIONS)):
            for entry in self._tree.entries(place) if place is not None else ():
                if entry.name.endswith(_EXTENSION) and entry.name.partition(b".")[0] == name and self._tree.is_file(entry.ino):
                    return entry.ino
        return None

    def _below(self, directory: int, name: bytes) -> int | None:
        ino = self._tree.lookup(directory, name)
        return ino if ino is not None and self._tree.is_directory(ino) else None

    def _regular(self, directory: int, name: bytes) -> int | None:
        ino = self._tree.lookup(directory, name)
        return ino if ino is not None and self._tree.is_file(ino) else None

    def _root(self, module: Module) -> int:
        """The directory that has the outermost package of `module`."""
        directory = module.directory
        for _ in range(_PACKAGES_MAX):
            above = self._places.of(directory) if self._file(directory, b"__init__", module.tag) is not None else None
            if above is None:
                break
            directory = above.directory
        return directory

    def _remember(self, root: int) -> None:
        if root not in self._roots:
            self._roots.append(root)
            if len(self._roots) > ROOTS_MAX:
                del self._roots[1]
