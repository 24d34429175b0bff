"""The cache: what is kept, what is found wrong and dropped, and that a broken disk fails no read."""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapshotter.chunkstore import chunkfiles, directory
from snapshotter.chunkstore.base import ChunkRef
from snapshotter.chunkstore.cache import PAUSE, CachedStore, ChunkCache
from snapshotter.chunkstore.stats import Count, Stats
from snapshotter.format.digest import Digest, sha256
from tests.support.chunks import StubStore, at_once, refs, some_chunks

CHUNKS = some_chunks(6)
WANTED = refs(CHUNKS)
DIGEST = WANTED[0].digest


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., ChunkCache]]:
    """Makes caches over one directory: each is what a process would have after a start."""
    made: list[ChunkCache] = []

    def cache(**options: object) -> ChunkCache:
        made.append(ChunkCache(tmp_path, stats=Stats(), **options))  # type: ignore[arg-type]
        return made[-1]

    yield cache
    for each in made:
        each.close()


def file(tmp_path: Path, number: int = 0) -> Path:
    name = WANTED[number].digest.hex()
    return tmp_path / "chunks" / name[:2] / name


def test_a_chunk_is_a_file_of_its_raw_bytes_that_only_its_owner_reads(make: Callable[..., ChunkCache], tmp_path: Path) -> None:
    cache = make()
    cache.put(DIGEST, CHUNKS[0])
    cache.flush()
    assert file(tmp_path).read_bytes() == CHUNKS[0]
    assert stat.S_IMODE(file(tmp_path).stat().st_mode) == 0o600
    assert list((tmp_path / "chunks" / ".tmp").iterdir()) == []


def test_only_what_is_missing_is_asked_of_the_next_member_and_then_kept(make: Callable[..., ChunkCache]) -> None:
    cache, stub = make(), StubStore(CHUNKS)
    store = CachedStore(cache, stub)
    store.get(WANTED[1:3])
    cache.flush()
    assert store.get(WANTED[:4]) == CHUNKS[:4]
    assert stub.asked == [[ref.digest for ref in WANTED[1:3]], [WANTED[0].digest, WANTED[3].digest]]
    assert cache.stats.snapshot()[Count.HITS] == {"": 2}
    assert cache.stats.snapshot()[Count.MISSES] == {"": 4}


def test_a_chunk_that_waits_to_be_written_is_a_hit(make: Callable[..., ChunkCache], monkeypatch: pytest.MonkeyPatch) -> None:
    cache, stub = make(), StubStore(CHUNKS)
    release, real = threading.Event(), chunkfiles.write

    def slow(path: str, raw: bytes) -> int:
        assert release.wait(10)
        return real(path, raw)

    monkeypatch.setattr(chunkfiles, "write", slow)
    store = CachedStore(cache, stub)
    store.get(WANTED[:1])
    assert cache.has(DIGEST)
    assert store.get(WANTED[:1]) == CHUNKS[:1]
    release.set()
    cache.flush()
    assert len(stub.asked) == 1


def test_when_the_queue_is_full_the_reader_writes_itself(make: Callable[..., ChunkCache], tmp_path: Path) -> None:
    cache = make(queue_bytes=10)
    cache.put(DIGEST, CHUNKS[0])
    assert file(tmp_path).read_bytes() == CHUNKS[0]


def become_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"x" + path.read_bytes()[1:]),
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        become_a_fifo,
        lambda path: os.truncate(path, 1 << 40),
    ],
    ids=["cut", "empty", "flipped", "longer", "fifo", "huge"],
)
@pytest.mark.parametrize("restarted", [True, False], ids=["after a start", "under the running process"])
def test_a_damaged_file_is_dropped_counted_and_fetched_again(
    make: Callable[..., ChunkCache], tmp_path: Path, damage: Callable[[Path], object], restarted: bool
) -> None:
    cache = make()
    cache.put(DIGEST, CHUNKS[0])
    cache.flush()
    assert cache.peek(DIGEST) == CHUNKS[0]
    damage(file(tmp_path))
    if restarted:
        cache = make()
    stub = StubStore(CHUNKS)
    assert CachedStore(cache, stub).get(WANTED[:1]) == CHUNKS[:1]
    assert cache.stats.total(Count.CACHE_CORRUPT) == 1
    cache.flush()
    assert file(tmp_path).read_bytes() == CHUNKS[0]
    assert len(stub.asked) == 1


def test_a_symlink_in_the_place_of_a_chunk_is_not_followed(make: Callable[..., ChunkCache], tmp_path: Path) -> None:
    cache = make()
    file(tmp_path).parent.mkdir(parents=True)
    (tmp_path / "elsewhere").write_bytes(CHUNKS[0])
    file(tmp_path).symlink_to(tmp_path / "elsewhere")
    assert cache.peek(DIGEST) is None
    assert cache.stats.total(Count.CACHE_READ_FAILURES) == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS], ids=errno.errorcode.get)
def test_a_cache_that_cannot_be_written_fails_no_read_warns_once_and_recovers(
    make: Callable[..., ChunkCache],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
) -> None:
    now = [0.0]
    cache, stub = make(clock=lambda: now[0]), StubStore(CHUNKS)
    store, real = CachedStore(cache, stub), os.write

    def refuse(descriptor: int, data: bytes) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", refuse)
    with caplog.at_level(logging.WARNING):
        for ref, raw in zip(WANTED[:4], CHUNKS[:4], strict=True):
            assert store.get([ref]) == [raw]
            cache.flush()
    assert cache.stats.total(Count.CACHE_WRITE_FAILURES) == 1  # after the first one, writing pauses
    assert len([record for record in caplog.records if os.strerror(code) in record.message]) == 1
    assert list((tmp_path / "chunks" / ".tmp").iterdir()) == []
    monkeypatch.setattr(os, "write", real)
    now[0] += PAUSE
    store.get(WANTED[:1])
    cache.flush()
    assert file(tmp_path).read_bytes() == CHUNKS[0]


def test_a_directory_that_is_deleted_under_the_process_comes_back(make: Callable[..., ChunkCache], tmp_path: Path) -> None:
    cache, stub = make(), StubStore(CHUNKS)
    store = CachedStore(cache, stub)
    store.get(WANTED)
    cache.flush()
    for path in sorted((tmp_path / "chunks").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "chunks").rmdir()
    assert store.get(WANTED) == CHUNKS
    cache.flush()
    assert file(tmp_path).read_bytes() == CHUNKS[0]


def test_two_caches_over_one_directory_share_what_either_has(make: Callable[..., ChunkCache]) -> None:
    one, two = make(), make()
    stub = StubStore(CHUNKS)
    assert at_once([lambda: CachedStore(one, stub).get(WANTED), lambda: CachedStore(two, stub).get(WANTED)]) == [CHUNKS, CHUNKS]
    one.flush()
    two.flush()
    assert [two.peek(ref.digest) for ref in WANTED] == CHUNKS
    assert [one.peek(ref.digest) for ref in WANTED] == CHUNKS
    assert one.stats.total(Count.CACHE_CORRUPT) == 0


def test_names_of_stored_bytes_are_neither_looked_up_nor_kept(make: Callable[..., ChunkCache]) -> None:
    cache, stub = make(), StubStore(CHUNKS)
    cache.put(DIGEST, CHUNKS[0])
    cache.flush()
    CachedStore(cache, stub).get([ChunkRef(DIGEST, compressed=True), ChunkRef(WANTED[1].digest, compressed=True)])
    assert len(stub.asked[0]) == 2
    assert not cache.has(WANTED[1].digest)


def test_a_file_is_hashed_once_per_start_as_long_as_it_stays_the_same(
    make: Callable[..., ChunkCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make()
    first.put(DIGEST, CHUNKS[0])
    first.flush()
    hashed: list[bytes] = []

    def hash_and_tell(raw: bytes) -> Digest:
        hashed.append(raw)
        return sha256(raw)

    monkeypatch.setattr(directory, "sha256", hash_and_tell)
    assert first.peek(DIGEST) == CHUNKS[0]  # its writer knows it
    again = make()
    assert again.peek(DIGEST) == again.peek(DIGEST) == CHUNKS[0]
    assert len(hashed) == 1


def test_what_is_remembered_as_checked_is_bounded(tmp_path: Path) -> None:
    store = directory.ChunkDirectory(tmp_path, verified_max=2)
    for raw in CHUNKS[:4]:
        store.store(sha256(raw), raw)
    assert [store.knows(sha256(raw)) for raw in CHUNKS[:4]] == [False, False, True, True]
    assert store.load(DIGEST) == CHUNKS[0]


@pytest.mark.parametrize(
    "ago", [2 * directory.TOUCH_INTERVAL, -2 * directory.TOUCH_INTERVAL], ids=["long ago", "in the future"]
)
def test_reading_renews_the_times_at_intervals(tmp_path: Path, ago: float) -> None:
    store = directory.ChunkDirectory(tmp_path)
    store.store(DIGEST, CHUNKS[0])
    path = file(tmp_path)
    begun = time.time()
    os.utime(path, (begun - ago, begun - ago))
    store.load(DIGEST)
    assert path.stat().st_mtime == pytest.approx(begun, abs=directory.TOUCH_INTERVAL / 2)
    assert path.stat().st_atime == pytest.approx(begun, abs=directory.TOUCH_INTERVAL / 2)
    lately = begun - directory.TOUCH_INTERVAL / 2
    os.utime(path, (lately, lately))
    store.load(DIGEST)
    assert path.stat().st_mtime == lately


def test_what_is_checked_stays_so_when_its_times_are_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = directory.ChunkDirectory(tmp_path)
    store.store(DIGEST, CHUNKS[0], wanted=False)
    monkeypatch.setattr(directory, "sha256", lambda raw: pytest.fail("hashed again"))
    assert store.load(DIGEST) == CHUNKS[0]
    assert file(tmp_path).stat().st_mtime > 0


def test_temporary_files_of_the_dead_are_removed_and_those_of_the_living_kept(
    make: Callable[..., ChunkCache], tmp_path: Path
) -> None:
    temporary = tmp_path / "chunks" / ".tmp"
    temporary.mkdir(parents=True)
    (temporary / "dead").write_bytes(b"half")
    os.utime(temporary / "dead", (1000, 1000))
    (temporary / "living").write_bytes(b"half")
    make()
    assert [path.name for path in temporary.iterdir()] == ["living"]


def test_what_is_at_hand_is_written_or_about_to_be(make: Callable[..., ChunkCache]) -> None:
    cache = make()
    store = CachedStore(cache, StubStore(CHUNKS))
    assert store.at_hand(WANTED[:1]) is None
    store.get(WANTED[:2])
    assert store.at_hand(WANTED[:2]) == CHUNKS[:2]
    cache.flush()
    assert store.at_hand(WANTED[:2]) == CHUNKS[:2]
    assert store.at_hand(WANTED[:3]) is None
    assert store.at_hand([ChunkRef(DIGEST, compressed=True)]) is None


def test_what_is_local_is_what_the_cache_has_and_nobody_else_is_asked(make: Callable[..., ChunkCache]) -> None:
    cache = make()
    stub = StubStore(CHUNKS)
    store = CachedStore(cache, stub)
    store.get(WANTED[:2])
    cache.flush()
    stub.asked.clear()
    assert store.local([WANTED[1], WANTED[0]]) == [CHUNKS[1], CHUNKS[0]]
    assert store.local(WANTED[:3]) is None
    assert store.local([ChunkRef(DIGEST, compressed=True)]) is None
    assert stub.asked == []
