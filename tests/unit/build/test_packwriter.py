"""A pack is the same whichever process writes it, and what goes wrong there is told here."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.build import packwriter
from snapshotter.build.pack import PackLayout, PackStream, lay_out
from snapshotter.build.packwriter import write_pack
from snapshotter.build.slots import EncodedChunk
from snapshotter.build.spool import ChunkSpool, SpooledChunk
from snapshotter.errors import UnavailableError
from snapshotter.format.compression import encode_chunk
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.verity import verity_digest
from tests.support.samples import noise


@pytest.fixture(params=["here", "elsewhere"], autouse=True)
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "elsewhere":
        monkeypatch.setattr(packwriter, "ALONE_MIN", 0)
    return str(request.param)


@pytest.fixture
def spool() -> Iterator[ChunkSpool]:
    made = ChunkSpool()
    for number in range(60):
        raw = noise(70_000, number)
        codec, stored = encode_chunk(raw, 3)
        made.take([EncodedChunk(sha256(raw), verity_digest(raw), len(raw), codec, memoryview(stored))])
    yield made
    made.close()


def laid_out(spool: ChunkSpool) -> PackLayout:
    """Some chunks as they lie, others the other way round, the last one without its neighbours."""

    def find(digest: Digest) -> SpooledChunk:
        place = spool.place(digest)
        assert place is not None
        return place

    names = list(spool.digests)
    return lay_out([*names[30:50], *names[29:5:-1], names[59]], find)


def test_it_has_the_bytes_of_the_pack_and_their_digest(spool: ChunkSpool, tmp_path: Path) -> None:
    pack = laid_out(spool)
    with (tmp_path / "pack").open("wb", buffering=0) as target:
        digest = write_pack(pack, spool.fileno(), target.fileno())
    written = (tmp_path / "pack").read_bytes()
    assert written == PackStream(pack, spool.readinto).read()
    assert (len(written), sha256(written)) == (pack.size, digest)


def test_a_target_that_cannot_be_written(spool: ChunkSpool) -> None:
    with open("/dev/full", "wb", buffering=0) as target, pytest.raises(OSError, match="No space left") as caught:
        write_pack(laid_out(spool), spool.fileno(), target.fileno())
    assert caught.value.errno == errno.ENOSPC


def test_a_source_that_ends_too_soon(spool: ChunkSpool, tmp_path: Path) -> None:
    pack = laid_out(spool)
    os.ftruncate(spool.fileno(), 1_000_000)
    with (tmp_path / "pack").open("wb") as target, pytest.raises(UnavailableError, match="temporary data cannot be read"):
        write_pack(pack, spool.fileno(), target.fileno())


@pytest.mark.parametrize(("program", "says"), [("/bin/false", "has ended, with status 1"), ("/none", "No such file")])
def test_a_process_that_does_not_do_it(
    spool: ChunkSpool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, says: str
) -> None:
    monkeypatch.setattr(packwriter, "ALONE_MIN", 0)
    monkeypatch.setattr("sys.executable", program)
    with (tmp_path / "pack").open("wb") as target, pytest.raises(UnavailableError, match=says):
        write_pack(laid_out(spool), spool.fileno(), target.fileno())
