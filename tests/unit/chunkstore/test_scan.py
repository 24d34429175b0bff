"""Everything on a node is checked against its name; what is wrong is named, and dropped if that is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapshotter.chunkstore.directory import ChunkDirectory
from snapshotter.chunkstore.indexes import IndexStore
from snapshotter.chunkstore.publish import publish
from snapshotter.chunkstore.scan import scan
from snapshotter.format.annotations import PackPlace
from snapshotter.format.compression import Codec
from snapshotter.format.digest import sha256
from snapshotter.format.model import Inode, Kind, RootfsContent
from snapshotter.format.pack import HEADER, PackEntry, trailer
from snapshotter.format.writer import encode
from tests.support.chunks import some_chunks

MESSAGE = encode(RootfsContent([[Inode(1, Kind.DIR)]]))
RAWS = some_chunks(3, size=5000)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A node with three chunks, an index and the metadata of a layer, all of it right."""
    directory = ChunkDirectory(tmp_path)
    for raw in RAWS:
        directory.store(sha256(raw), raw)
    entry = PackEntry(sha256(RAWS[0]), len(RAWS[0]), len(HEADER), len(RAWS[0]), Codec.RAW)
    offset = len(HEADER) + len(RAWS[0])
    end, length = trailer([entry], offset)
    place = PackPlace(sha256(b"pack"), offset, length)
    publish(IndexStore(tmp_path).file(place), sha256(end[:length]) + end[:length])
    publish(tmp_path / "layers" / sha256(MESSAGE).hex() / "metadata", MESSAGE)
    return tmp_path


def chunk(root: Path, number: int = 0) -> Path:
    return Path(ChunkDirectory(root).file(sha256(RAWS[number])))


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_nothing_is_wrong(root: Path) -> None:
    told: list[tuple[int, int]] = []
    found = scan(root, progress=lambda done, total: told.append((done, total)))
    assert (found.chunks, found.indexes, found.metadata, found.errors, found.problems) == (3, 1, 1, 0, [])
    assert found.bytes > 15_000
    assert told == [(number, 5) for number in range(1, 6)]


def test_a_node_without_anything(tmp_path: Path) -> None:
    assert scan(tmp_path / "none").chunks == 0


def test_each_kind_of_file_that_is_wrong(root: Path) -> None:
    victims = [chunk(root), *(root / "packs").iterdir(), root / "layers" / sha256(MESSAGE).hex() / "metadata"]
    for path in victims:
        spoil(path)
    found = scan(root)
    assert (found.errors, found.dropped) == (3, 0)
    for path, problem, says in zip(victims, found.problems, ("holds something else", "checksum", "diff ID"), strict=True):
        assert problem.startswith(str(path))
        assert says in problem
    assert all(path.exists() for path in victims)


def test_what_is_wrong_is_dropped_but_metadata(root: Path) -> None:
    metadata = root / "layers" / sha256(MESSAGE).hex() / "metadata"
    spoil(chunk(root, 1))
    spoil(metadata)
    found = scan(root, drop=True)
    assert (found.errors, found.dropped) == (2, 1)
    assert not chunk(root, 1).exists()
    assert metadata.exists()
    assert chunk(root, 0).exists()


def test_a_chunk_that_is_cut_or_grew(root: Path) -> None:
    chunk(root).write_bytes(b"")
    chunk(root, 1).write_bytes(RAWS[1] + b"more")
    assert scan(root).errors == 2


def test_temporary_and_foreign_files_are_left_alone(root: Path) -> None:
    (root / "chunks" / ".tmp").mkdir(exist_ok=True)
    (root / "chunks" / ".tmp" / ("0" * 64)).write_bytes(b"half written")
    (root / "chunks" / "README").write_bytes(b"?")
    assert scan(root, drop=True).errors == 0
    assert (root / "chunks" / ".tmp" / ("0" * 64)).exists()
