"""How far the kernel is told to read ahead, and when."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from snapshotter.daemon.startwindow import READ_AHEAD, READ_AHEAD_WITH_PROFILE, Started, StartWindow
from snapshotter.mount import mounting
from snapshotter.mount.wire import READ_AHEAD_MAX
from tests.support.chunks import StubStore, refs, some_chunks

CHUNKS = some_chunks(2)
MOUNT = Path("/l/1")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes that the kernel is told."""
    sizes: list[int] = []
    changed = threading.Event()

    def tell(mountpoint: Path, size: int) -> bool:
        assert mountpoint == MOUNT
        sizes.append(size)
        changed.set()
        return True

    monkeypatch.setattr(mounting, "set_read_ahead", tell)
    return sizes


@pytest.mark.parametrize(("profile", "size"), [(False, READ_AHEAD), (True, READ_AHEAD_WITH_PROFILE)])
def test_a_start_begins_with_little(told: list[int], profile: bool, size: int) -> None:
    window = StartWindow(MOUNT, profile=profile)
    assert told == [size]
    window.end()


def test_a_start_that_is_over_gets_all(told: list[int]) -> None:
    window = StartWindow(MOUNT, profile=False, seconds=0.01)
    store = Started(StubStore(CHUNKS), window)
    assert told == [READ_AHEAD], "time counts from the first read"
    store.get(refs(CHUNKS))
    window._timer.join(10)
    assert told == [READ_AHEAD, READ_AHEAD_MAX]
    window.end()
    assert told == [READ_AHEAD, READ_AHEAD_MAX]


def test_somebody_who_reads_everything_ends_it(told: list[int]) -> None:
    window = StartWindow(MOUNT, profile=True)
    store = Started(StubStore(CHUNKS), window)
    store.get(refs(CHUNKS))
    window.end()
    window._timer.join(10)
    assert told == [READ_AHEAD_WITH_PROFILE, READ_AHEAD_MAX]
