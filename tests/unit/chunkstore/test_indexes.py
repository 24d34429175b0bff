"""Pack indexes on this node."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from snapshotter.chunkstore.indexes import TRIM_AGE, IndexStore
from snapshotter.chunkstore.packmap import PackMap
from snapshotter.errors import CorruptError, InvalidError, NotFoundError, UnavailableError
from snapshotter.format.annotations import INDEX_SIZE_MAX, PACK_SIZE_MAX
from snapshotter.format.digest import sha256
from snapshotter.format.pack import PackIndex
from tests.support.chunks import MemoryBlobs, make_pack, some_chunks

CHUNKS = some_chunks(10)
PLACE, PACK, ENTRIES = make_pack(CHUNKS)


@pytest.fixture
def reader() -> MemoryBlobs:
    made = MemoryBlobs()
    made.add(PACK)
    return made


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as made:
        yield made


def test_an_index_is_fetched_once_and_then_found_here(tmp_path: Path, reader: MemoryBlobs) -> None:
    assert list(IndexStore(tmp_path).open(PLACE, [reader])) == sorted(ENTRIES, key=lambda entry: entry.digest)
    assert reader.asked == [(PLACE.pack, PLACE.index_offset, PLACE.index_length)]
    assert len(IndexStore(tmp_path).open(PLACE, [])) == len(ENTRIES)


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: data[:40] + b"!" + data[41:], lambda data: bytes(32) + data[32:], lambda data: b""],
)
def test_a_damaged_file_is_fetched_again(tmp_path: Path, reader: MemoryBlobs, damage: object) -> None:
    store = IndexStore(tmp_path)
    store.open(PLACE, [reader])
    path = store.file(PLACE)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert len(store.open(PLACE, [reader])) == len(ENTRIES)
    assert len(reader.asked) == 2
    assert len(IndexStore(tmp_path).open(PLACE, [])) == len(ENTRIES)


def test_a_label_that_places_the_index_elsewhere_does_not_spoil_it_for_others(tmp_path: Path, reader: MemoryBlobs) -> None:
    store = IndexStore(tmp_path)
    with pytest.raises(CorruptError):
        store.open(replace(PLACE, index_offset=0), [reader])
    assert len(store.open(PLACE, [reader])) == len(ENTRIES)
    with pytest.raises(CorruptError):
        store.open(replace(PLACE, index_offset=0), [reader])
    assert len(store.open(PLACE, [])) == len(ENTRIES)


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (0, INDEX_SIZE_MAX + 1), (PACK_SIZE_MAX + 1, 10), (-1, 10)], ids=str)
def test_a_place_beyond_bounds_is_refused_unread(tmp_path: Path, reader: MemoryBlobs, offset: int, length: int) -> None:
    with pytest.raises(InvalidError, match="beyond what any pack may hold"):
        IndexStore(tmp_path).open(replace(PLACE, index_offset=offset, index_length=length), [reader])
    assert reader.asked == []


def test_the_next_source_is_asked_and_the_error_tells_what_each_said(tmp_path: Path, reader: MemoryBlobs) -> None:
    empty, down = MemoryBlobs("empty"), MemoryBlobs("down")

    def refuse(*_: object) -> None:
        raise UnavailableError("no route")

    down.before = refuse
    assert len(IndexStore(tmp_path / "a").open(PLACE, [empty, down, reader])) == len(ENTRIES)
    with pytest.raises(UnavailableError, match=r"empty: no blob .*; down: no route"):
        IndexStore(tmp_path / "b").open(PLACE, [empty, down])
    with pytest.raises(NotFoundError):
        IndexStore(tmp_path / "b").open(PLACE, [empty])


def test_an_index_that_cannot_be_kept_is_used_all_the_same(tmp_path: Path, reader: MemoryBlobs) -> None:
    (tmp_path / "packs").write_bytes(b"a file where the directory should be")
    assert len(IndexStore(tmp_path).open(PLACE, [reader])) == len(ENTRIES)


def test_all_are_fetched_several_at_a_time_and_the_first_failure_raised(
    tmp_path: Path, reader: MemoryBlobs, pool: ThreadPoolExecutor
) -> None:
    other, pack, _ = make_pack(some_chunks(3, seed=2))
    store = IndexStore(tmp_path)
    with pytest.raises(NotFoundError):
        store.fetch([other, PLACE], [reader], pool)
    assert store.has(PLACE)
    reader.add(pack)
    store.fetch([other, PLACE], [reader], pool)
    assert store.has(other)
    assert len(reader.asked) == 3


class TestPackMap:
    def test_chunks_come_in_the_order_of_their_places(self, reader: MemoryBlobs, tmp_path: Path) -> None:
        pack = IndexStore(tmp_path).map(PLACE, [reader])
        assert list(pack.between(0, PLACE.index_offset)) == ENTRIES
        assert list(pack.between(ENTRIES[2].offset, ENTRIES[5].offset)) == ENTRIES[2:5]
        assert list(pack.between(ENTRIES[2].offset + 1, ENTRIES[3].offset)) == []

    def test_an_index_is_loaded_once_and_a_failed_load_is_tried_again(self) -> None:
        answers: list[PackIndex | UnavailableError] = [
            UnavailableError("down"),
            PackIndex.parse(PACK[PLACE.index_offset :][: PLACE.index_length], PLACE.index_offset),
        ]

        def load() -> PackIndex:
            answer = answers.pop(0)
            if isinstance(answer, UnavailableError):
                raise answer
            return answer

        pack = PackMap(sha256(PACK), load)
        with pytest.raises(UnavailableError):
            pack.index()
        assert pack.index() is pack.index()


def test_what_no_layer_names_any_more_goes_but_not_what_was_just_asked_for(
    tmp_path: Path, reader: MemoryBlobs, pool: ThreadPoolExecutor
) -> None:
    store = IndexStore(tmp_path)
    store.trim([])
    store.open(PLACE, [reader])

    def grow_old() -> None:
        os.utime(store.file(PLACE), (0, time.time() - TRIM_AGE - 1))

    store.trim([])
    assert store.has(PLACE), "somebody fetched it just now"
    grow_old()
    store.trim([PLACE])
    assert store.has(PLACE), "it is needed"
    store.fetch([PLACE], [], pool)
    store.trim([])
    assert store.has(PLACE), "somebody asked for it just now"
    grow_old()
    store.trim([])
    assert not store.has(PLACE)
