"""With a kernel that has fs-verity: what it measures is what we compute, and what changes on the disk is never served."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from snapshotter.chunkstore.base import ChunkRef
from snapshotter.chunkstore.cache import CachedStore, ChunkCache
from snapshotter.chunkstore.directory import ChunkDirectory
from snapshotter.chunkstore.publish import publish
from snapshotter.chunkstore.stats import Count, Stats
from snapshotter.errors import CorruptError, FailedPreconditionError
from snapshotter.format import fsverity
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.fsverity import Mode
from snapshotter.format.verity import verity_digest
from tests.support.chunks import StubStore, some_chunks
from tests.vm.disk import flip_on_disk, forget

RAW = some_chunks(1, size=100_000)[0]
DIGEST = sha256(RAW)


def named(digest: Digest) -> bytes | None:
    return verity_digest(RAW) if digest == DIGEST else None


def test_it_is_found_where_it_is(verity_disk: Path) -> None:
    assert fsverity.is_wanted(Mode.AUTO, verity_disk / "root")
    assert fsverity.is_wanted(Mode.REQUIRE, verity_disk / "root")
    assert list((verity_disk / "root").iterdir()) == []


def test_a_file_system_without_it_is_found_out_too() -> None:
    assert not fsverity.is_wanted(Mode.AUTO, Path("/tmp/root"))
    with pytest.raises(FailedPreconditionError, match="no fs-verity"):
        fsverity.is_wanted(Mode.REQUIRE, Path("/tmp/root"))


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 100_000, 128 * 4096, 128 * 4096 + 1, 1 << 24])
def test_the_kernel_measures_what_we_compute(size: int, verity_disk: Path) -> None:
    content = (b"0123456789abcdef\n" * (size // 17 + 1))[:size]
    publish(verity_disk / "file", content, fsverity.enable)
    with (verity_disk / "file").open("rb") as file:
        assert fsverity.measure(file.fileno()) == verity_digest(content)
        fsverity.enable(file.fileno())  # a second time is no error
    with pytest.raises(PermissionError):
        (verity_disk / "file").open("r+b")


def test_a_file_that_was_not_sealed_measures_as_nothing(verity_disk: Path) -> None:
    (verity_disk / "file").write_bytes(b"content")
    with (verity_disk / "file").open("rb") as file:
        assert fsverity.measure(file.fileno()) is None


@pytest.mark.parametrize("offset", [0, 50_000, len(RAW) - 1])
def test_the_kernel_refuses_what_changed_on_the_disk(offset: int, verity_disk: Path) -> None:
    chunks = ChunkDirectory(verity_disk, sealing=fsverity)
    chunks.store(DIGEST, RAW)
    path = Path(chunks.file(DIGEST))
    flip_on_disk(path, offset)
    with pytest.raises(OSError, match="Input/output error") as refused:
        path.read_bytes()
    assert refused.value.errno == errno.EIO


@pytest.mark.parametrize("after_a_start", [False, True])
def test_a_changed_chunk_is_dropped_and_fetched_again(after_a_start: bool, verity_disk: Path) -> None:
    cache, stub = ChunkCache(verity_disk, stats=Stats(), sealing=fsverity), StubStore([RAW])
    store = CachedStore(cache, stub, named)
    assert store.get([ChunkRef(DIGEST)]) == [RAW]
    cache.flush()
    if after_a_start:
        cache.close()
        cache = ChunkCache(verity_disk, stats=Stats(), sealing=fsverity)
        store = CachedStore(cache, stub, named)
    assert store.get([ChunkRef(DIGEST)]) == [RAW]
    assert len(stub.asked) == 1
    flip_on_disk(Path(cache.directory.file(DIGEST)), 70_000)
    assert store.get([ChunkRef(DIGEST)]) == [RAW]
    assert len(stub.asked) == 2
    assert cache.stats.snapshot()[Count.CACHE_CORRUPT] == {"": 1}
    cache.flush()
    with open(cache.directory.file(DIGEST), "rb") as file:
        assert fsverity.measure(file.fileno()) == verity_digest(RAW)
    assert store.get([ChunkRef(DIGEST)]) == [RAW]
    assert len(stub.asked) == 2
    cache.close()


def test_without_the_kernels_help_a_changed_chunk_is_not_served_either(verity_disk: Path) -> None:
    cache, stub = ChunkCache(verity_disk, stats=Stats()), StubStore([RAW])
    store = CachedStore(cache, stub)
    store.get([ChunkRef(DIGEST)])
    cache.flush()
    assert store.get([ChunkRef(DIGEST)]) == [RAW]
    path = Path(cache.directory.file(DIGEST))
    before = os.stat(path)
    flip_on_disk(path, 70_000)
    assert path.read_bytes() != RAW
    forget(path)
    after = os.stat(path)
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
    assert store.get([ChunkRef(DIGEST)]) == [RAW]
    assert len(stub.asked) == 2
    cache.close()


def test_what_was_cached_unsealed_is_sealed_when_it_is_read(verity_disk: Path) -> None:
    ChunkDirectory(verity_disk).store(DIGEST, RAW)
    chunks = ChunkDirectory(verity_disk, sealing=fsverity)
    assert chunks.load(DIGEST, named) == RAW
    flip_on_disk(Path(chunks.file(DIGEST)), 0)
    with pytest.raises(CorruptError, match="fails fs-verity"):
        chunks.load(DIGEST, named)
    assert not chunks.exists(DIGEST)
