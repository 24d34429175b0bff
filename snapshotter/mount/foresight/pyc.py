"""What a compiled Python module imports while it is loaded: a pure reading of a hostile ``.pyc`` file.

The file is read as CPython writes it (Python/marshal.c and Lib/importlib/_bootstrap_external.py), without building anything of
it: objects are only passed over until the code of the module, its constants and its names are found, and its import
instructions then tell. What functions import when they are called is not looked for, nor what only a type checker or a
program started as ``__main__`` imports.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import NamedTuple

HEADER = 16
"""Bytes before the code: magic number, flags, and the source's time and size or its hash (PEP 552)."""

NAMES_MAX = 4096
"""Names in the imports of one module that are looked at. PyTorch's largest has some 300."""

NAME_MAX = 1024
"""Bytes of a name: a longer one is no file's."""

_REF = 0x80
_DEPTH_MAX = 1000
_SKIPPED_BETWEEN = 16  # instructions and caches between a condition's names and its jump
_TYPE_CHECKING, _NAME, _MAIN = b"TYPE_CHECKING", b"__name__", b"__main__"


class Import(NamedTuple):
    """``import name``, or ``from name import names``; `level` dots stand before `name`, which may be empty then."""

    level: int
    name: bytes
    names: tuple[bytes, ...] = ()


class _Release(NamedTuple):
    """How a release of CPython writes code: 32-bit numbers at the beginning of a code object, objects behind its line
    number, and the numbers of instructions. `relative`: whether jumps count from behind them; `wide`: whether in
    instructions of two bytes, and not in bytes."""

    numbers: int
    objects_last: int
    import_name: int
    load_const: int
    load_name: int
    jump_if_false: int
    extended: int
    load_small_int: int = -1
    relative: bool = True
    wide: bool = True


_3_8 = _Release(6, 1, 108, 100, 101, 114, 144, relative=False, wide=False)
_RELEASES = {
    3413: _3_8,
    3425: _3_8,
    3439: _3_8._replace(wide=True),
    3495: _Release(5, 2, 108, 100, 101, 114, 144),
    3531: _Release(5, 2, 108, 100, 101, 114, 144),
    3571: _Release(5, 2, 75, 83, 92, 97, 71),
    3627: _Release(5, 2, 73, 82, 93, 100, 69, load_small_int=94),
}
"""By the magic number of the finished release: 3.8 to 3.14."""

_OBJECTS_FIRST = 8  # of a code object, before its line number, in all of these releases
_SHORT = frozenset(b"zZ")
_LONG = frozenset(b"stuaA")
_EMPTY = frozenset(b"NFTS.0")
_FIXED = {ord("r"): 4, ord("i"): 4, ord("I"): 8, ord("g"): 8, ord("y"): 16}
_MANY = frozenset(b"(<>[")


def is_bytecode(head: bytes) -> bool:
    """Whether `head` begins a file of a release that is known here."""
    return len(head) >= HEADER and head[2:4] == b"\r\n" and int.from_bytes(head[:2], "little") in _RELEASES


def imports(data: bytes) -> list[Import]:
    """What the module in the file `data` imports while it is loaded, in its order; nothing where the release is not known, and
    what has been found up to there where the file is no such file. Never raises; takes time in proportion to `data`."""
    if not is_bytecode(data):
        return []
    found: list[Import] = []
    left = NAMES_MAX
    with contextlib.suppress(IndexError, ValueError):
        for one in _Module(data, _RELEASES[int.from_bytes(data[:2], "little")]).imports():
            left -= 1 + len(one.names)
            if left < 0:
                break
            found.append(one)
    return found


class _Module:
    """A file that is being read. Its methods raise `ValueError` or `IndexError` where it is not what it says."""

    def __init__(self, data: bytes, release: _Release) -> None:
        self._data = data
        self._release = release
        self._refs: list[int] = []
        """Where the objects begin that others refer to, by number."""

    def imports(self) -> Iterator[Import]:
        data = self._data
        if data[HEADER] & ~_REF != ord("c"):
            raise ValueError("no code")
        if data[HEADER] & _REF:
            self._refs.append(HEADER)
        code = HEADER + 1 + 4 * self._release.numbers
        constants = self._behind(code)
        items, names = self._items(constants)
        texts, _ = self._items(names)
        yield from self._instructions(self._text(code, len(data)), items, texts)

    def _instructions(self, code: bytes, constants: list[int], names: list[int]) -> Iterator[Import]:
        release = self._release
        operations = code[::2]
        skipped_to = 0
        for match in re.finditer(b"[" + re.escape(bytes((release.import_name, release.jump_if_false))) + b"]", operations):
            at = match.start()
            if at < skipped_to:
                continue
            argument, first = self._argument(code, at)
            if operations[at] == release.jump_if_false:
                if self._for_others(code, first - 1, constants, names):
                    skipped_to = at + 1 + argument if release.relative else argument if release.wide else argument // 2
                continue
            fromlist, before = self._constant(code, first - 1, constants)
            level, _ = self._constant(code, before - 1, constants)
            yield Import(self._number(level), self._text(names[argument]), self._texts(fromlist))

    def _argument(self, code: bytes, at: int) -> tuple[int, int]:
        """The argument of the instruction `at`, and where its prefixes begin."""
        argument = code[2 * at + 1]
        shift = 8
        while at > 0 and code[2 * at - 2] == self._release.extended and shift < 32:
            at -= 1
            argument |= code[2 * at + 1] << shift
            shift += 8
        return argument, at

    def _constant(self, code: bytes, at: int, constants: list[int]) -> tuple[int | None, int]:
        """Where the constant is that the instruction `at` loads, or minus its value where the instruction says it; and where
        that instruction begins."""
        if at < 0:
            raise ValueError("no such instruction")
        argument, first = self._argument(code, at)
        if code[2 * at] == self._release.load_const:
            return constants[argument], first
        if code[2 * at] == self._release.load_small_int:
            return -argument, first
        raise ValueError("no constant")

    def _for_others(self, code: bytes, at: int, constants: list[int], names: list[int]) -> bool:
        """Whether the condition that ends with instruction `at` holds for a type checker, or for a program, alone."""
        release = self._release
        main = False
        for place in range(at, max(-1, at - _SKIPPED_BETWEEN), -1):
            operation = code[2 * place]
            if operation == release.load_const:
                main = self._text_at(constants, self._argument(code, place)[0]) == _MAIN
                if not main:
                    return False
            elif operation == release.load_name:
                name = self._text_at(names, self._argument(code, place)[0])
                return name == _NAME if main else name == _TYPE_CHECKING
        return False

    def _text_at(self, places: list[int], number: int) -> bytes:
        try:
            return self._text(places[number])
        except ValueError:
            return b""

    def _items(self, at: int) -> tuple[list[int], int]:
        """Where the items of the tuple `at` begin, and what is behind it. Registers it and them."""
        data = self._data
        if data[at] & _REF:
            self._refs.append(at)
        count, place = self._tuple(at)
        items = []
        for _ in range(count):
            items.append(place)
            place = self._behind(place)
        return items, place

    def _tuple(self, at: int) -> tuple[int, int]:
        """The items of the tuple `at`, and where the first is."""
        kind = self._data[at] & ~_REF
        if kind == ord(")"):
            return self._data[at + 1], at + 2
        if kind == ord("("):
            return self._size(at + 1), at + 5
        raise ValueError("no tuple")

    def _size(self, at: int) -> int:
        size = int.from_bytes(self._data[at : at + 4], "little")
        if size > len(self._data):
            raise ValueError("longer than the file")
        return size

    def _number(self, at: int | None) -> int:
        if at is None or at <= 0:
            return -(at or 0)
        if self._data[at] & ~_REF == ord("r"):
            at = self._refs[self._size(at + 1)]
        if self._data[at] & ~_REF != ord("i"):
            raise ValueError("no number")
        return int.from_bytes(self._data[at + 1 : at + 5], "little")

    def _text(self, at: int, longest: int = NAME_MAX) -> bytes:
        """The text `at`, or that it refers to. Many may refer to one, so that none is longer than `longest`."""
        data = self._data
        kind = data[at] & ~_REF
        if kind == ord("r"):
            at = self._refs[self._size(at + 1)]
            kind = data[at] & ~_REF
        if kind in _SHORT:
            return data[at + 2 : at + 2 + data[at + 1]]
        if kind in _LONG:
            size = self._size(at + 1)
            if size > longest:
                raise ValueError("too long")
            return data[at + 5 : at + 5 + size]
        raise ValueError("no text")

    def _texts(self, at: int | None) -> tuple[bytes, ...]:
        """The texts of the tuple `at`; none where there is no tuple, which is how ``import name`` is written."""
        if at is None or at <= 0:
            return ()
        if self._data[at] & ~_REF == ord("r"):
            at = self._refs[self._size(at + 1)]
        if self._data[at] & ~_REF not in b")(":
            return ()
        count, place = self._tuple(at)
        if count > NAMES_MAX:
            raise ValueError("too many names")
        texts = []
        for _ in range(count):
            texts.append(self._text(place))
            kind = self._data[place] & ~_REF
            place += 5 if kind == ord("r") else 2 + self._data[place + 1] if kind in _SHORT else 5 + self._size(place + 1)
        return tuple(texts)

    def _behind(self, at: int) -> int:
        """Where the object `at` ends; notes on the way what others refer to."""
        data, release, refs = self._data, self._release, self._refs
        above: list[tuple[int, bool]] = []  # for each object around this one: items left, and whether those were a code's first
        left, code = 1, False
        while True:
            kind = data[at]
            if kind & _REF:
                refs.append(at)
                kind &= ~_REF
            inside = 0
            if kind in _FIXED:
                at += 1 + _FIXED[kind]
            elif kind in _SHORT:
                at += 2 + data[at + 1]
            elif kind in _LONG:
                at += 5 + self._size(at + 1)
            elif kind in _EMPTY:
                at += 1
            elif kind == ord(")"):
                inside = data[at + 1]
                at += 2
            elif kind in _MANY:
                inside = self._size(at + 1)
                at += 5
            elif kind == ord("c"):
                inside = _OBJECTS_FIRST
                at += 1 + 4 * release.numbers
            elif kind == ord("l"):
                at += 5 + 2 * abs(int.from_bytes(data[at + 1 : at + 5], "little", signed=True))
            elif kind == ord(":"):
                inside = 3
                at += 1
            else:
                raise ValueError(f"no object of kind {kind}")
            if at > len(data):
                raise ValueError("it ends too early")
            if inside:
                if len(above) == _DEPTH_MAX:
                    raise ValueError("too deep")
                above.append((left, code))
                left, code = inside, kind == ord("c")
                continue
            left -= 1
            while not left:
                if code:  # its line number, then the rest of it
                    at += 4
                    left, code = release.objects_last, False
                elif above:
                    left, code = above.pop()
                    left -= 1
                else:
                    return at
