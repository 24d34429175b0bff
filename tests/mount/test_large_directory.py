"""A directory of 50,000 entries, read with the C library's directory streams as programs do, by both engines."""

from __future__ import annotations

import ctypes
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.format.model import DirEntry, Inode, Kind
from tests.mount.engines import Engine, Mounted
from tests.mount.source import Builder

MANY = 50_000
NAMES = [b"entry-%05d" % number for number in range(MANY)]

_libc = ctypes.CDLL(None, use_errno=True)


class _Dirent(ctypes.Structure):
    """``struct dirent64``."""

    _fields_ = (
        ("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("reclen", ctypes.c_uint16), ("type", ctypes.c_uint8),
        ("name", ctypes.c_char * 256),
    )  # fmt: skip


_libc.opendir.restype = ctypes.c_void_p
_libc.readdir64.restype = ctypes.POINTER(_Dirent)
_libc.telldir.restype = ctypes.c_long
for _function, _more in (("readdir64", []), ("telldir", []), ("seekdir", [ctypes.c_long]), ("rewinddir", []), ("closedir", [])):
    getattr(_libc, _function).argtypes = [ctypes.c_void_p, *_more]


class Stream:
    """A directory stream (opendir(3))."""

    def __init__(self, path: Path) -> None:
        self._stream = _libc.opendir(os.fsencode(path))
        assert self._stream

    def read(self) -> bytes | None:
        entry = _libc.readdir64(self._stream)
        return entry.contents.name if entry else None

    def rest(self) -> list[bytes]:
        return list(iter(self.read, None))

    def tell(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, place: int) -> None:
        _libc.seekdir(self._stream, place)

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)

    def close(self) -> None:
        _libc.closedir(self._stream)


@pytest.fixture(scope="module")
def large(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """The directory, mounted by the engine."""
    builder = Builder()
    root = Inode(1, Kind.DIR, entries=[DirEntry(number, name) for number, name in enumerate(NAMES, 2)], look_below=True)
    builder.inodes = {1: root, **{number: Inode(number, Kind.FIFO) for number in range(2, MANY + 2)}}
    directory = tmp_path_factory.mktemp("large")
    with engine.mounted(builder.write(directory / "image"), directory / "m") as mount:
        yield mount


@pytest.fixture
def stream(large: Mounted) -> Iterator[Stream]:
    """A stream of the directory."""
    opened = Stream(large.path)
    yield opened
    opened.close()


def test_every_name_comes_once_and_again_after_rewinding(stream: Stream) -> None:
    assert sorted(stream.rest()) == sorted([b".", b"..", *NAMES])
    stream.rewind()
    assert len(stream.rest()) == MANY + 2


def test_reading_goes_on_where_telldir_was(stream: Stream) -> None:
    places = []
    names = []
    while True:
        place = stream.tell()
        name = stream.read()
        if name is None:
            break
        places.append(place)
        names.append(name)
    chance = random.Random(3)
    for index in [0, 1, 2, MANY + 1, *(chance.randrange(MANY + 2) for _ in range(200))]:
        stream.seek(places[index])
        assert stream.tell() == places[index]
        assert [stream.read() for _ in range(3)] == [*names[index : index + 3], None, None][:3]
    stream.seek(places[MANY // 2])
    assert stream.rest() == names[MANY // 2 :]


def test_two_streams_do_not_mind_each_other(large: Mounted, stream: Stream) -> None:
    other = Stream(large.path)
    first = [stream.read() for _ in range(1000)]
    assert other.rest() == first + stream.rest()
    other.close()
