"""What a start reads, written down."""

from __future__ import annotations

from pathlib import Path

from snapshotter.chunkstore.recorder import Recorded, read_records
from snapshotter.format.digest import sha256
from tests.support.chunks import StubStore, refs, some_chunks

CHUNKS = some_chunks(4)
DIGESTS = [sha256(raw) for raw in CHUNKS]


def test_every_chunk_is_recorded_once_in_the_order_of_the_first_reads(tmp_path: Path) -> None:
    ticks = iter(range(10))
    store = Recorded(StubStore(CHUNKS), tmp_path / "records" / "one", clock=lambda: next(ticks))
    assert store.get(refs([CHUNKS[2], CHUNKS[0]])) == [CHUNKS[2], CHUNKS[0]]
    store.get(refs([CHUNKS[0], CHUNKS[1]]))
    store.close()
    assert read_records([tmp_path / "records" / "one"]) == [DIGESTS[2], DIGESTS[0], DIGESTS[1]]


def test_recording_ends_after_its_time(tmp_path: Path) -> None:
    ticks = iter([0, 5_000_000_000, 11_000_000_000])
    store = Recorded(StubStore(CHUNKS), tmp_path / "it", seconds=10, clock=lambda: next(ticks))
    for raw in CHUNKS:
        assert store.get(refs([raw])) == [raw]
    store.close()
    assert read_records([tmp_path / "it"]) == DIGESTS[:2]


def test_the_layers_of_an_image_are_put_together_by_time(tmp_path: Path) -> None:
    ticks = iter(range(10))
    one, two = (Recorded(StubStore(CHUNKS), tmp_path / name, clock=lambda: next(ticks)) for name in ("1", "2"))
    one.get(refs([CHUNKS[0]]))
    two.get(refs([CHUNKS[1]]))
    one.get(refs([CHUNKS[2]]))
    one.close()
    two.close()
    assert read_records([tmp_path / "2", tmp_path / "1"]) == DIGESTS[:3]


def test_a_line_that_was_cut_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "it").write_bytes(b"1 " + DIGESTS[0].hex().encode() + b"\n2 abcd\nx " + b"g" * 64 + b"\n3 " + b"g" * 64)
    assert read_records([tmp_path / "it", tmp_path / "none"]) == [DIGESTS[0]]


def test_a_read_does_not_fail_of_what_cannot_be_recorded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = Recorded(StubStore(CHUNKS), tmp_path / "file" / "records")
    assert store.get(refs(CHUNKS)) == CHUNKS
    store.close()
