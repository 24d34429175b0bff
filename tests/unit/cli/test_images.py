"""What `convert` and `push` leave behind when they do not come to their end."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from snapshotter.cli.images import _places
from snapshotter.errors import UnavailableError
from snapshotter.format.digest import sha256
from snapshotter.registry.base import Descriptor
from tests.support import samples
from tests.support.images import write_image

BLOB = Descriptor("application/octet-stream", sha256(b"data"), 4)


@pytest.fixture
def source(tmp_path: Path) -> str:
    return write_image(tmp_path / "source", "v1", [samples.base().tar()]).reference


def begin(source: str, target: Path, end: Callable[[], None]) -> None:
    with _places(source, f"oci-archive:{target}/image.tar:v1", (), None) as (_, place, _, _):
        place.store.put_blob(BLOB, io.BytesIO(b"data"))
        assert list(target.iterdir())
        end()


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("failure", [UnavailableError("the disk is full"), KeyboardInterrupt()], ids=["failure", "interrupt"])
def test_an_archive_that_was_begun_leaves_nothing(failure: BaseException, source: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(type(failure)):
        begin(source, target, lambda: fail(failure))
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_cleans_up_as_an_interrupt_does(number: signal.Signals, source: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    inherited = signal.signal(number, signal.SIG_DFL)  # under nohup SIGHUP is ignored, and stays so
    try:
        with pytest.raises(KeyboardInterrupt):
            begin(source, target, lambda: signal.raise_signal(number))
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, inherited)
    assert list(target.iterdir()) == []
