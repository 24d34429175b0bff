"""Numbers that name mountpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapshotter.daemon import mountpoints
from snapshotter.daemon.mountpoints import Mountpoints
from snapshotter.errors import NotFoundError, UnavailableError
from snapshotter.format.digest import sha256

A, B = sha256(b"a"), sha256(b"b")


@pytest.fixture
def places(tmp_path: Path) -> Mountpoints:
    for name in ("layers", "l"):
        (tmp_path / name).mkdir()
    return Mountpoints(tmp_path / "layers", tmp_path / "l")


def test_a_layer_keeps_its_place_and_shares_it_with_none(places: Mountpoints, tmp_path: Path) -> None:
    first, other, copy = places.make(A), places.make(B), places.make(A, 1)
    assert len({first, other, copy}) == 3
    again = Mountpoints(tmp_path / "layers", tmp_path / "l")
    assert (again.make(A), again.of(B), again.of(A, 1)) == (first, other, copy)
    assert sorted(again.all_of(A)) == sorted([first, copy])
    assert again.all_of(A)[-1] == first


def test_a_number_is_not_given_out_while_anything_has_it(places: Mountpoints, tmp_path: Path) -> None:
    """Not even by a copy whose layer is lost: something may be mounted there."""
    (tmp_path / "l" / "7.2").mkdir()
    again = Mountpoints(tmp_path / "layers", tmp_path / "l")
    assert again.make(A).name == "8"
    assert [path.name for path in again.lost()] == ["7.2"]


def test_what_has_no_number_has_no_place(places: Mountpoints, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        places.of(A)
    assert places.all_of(A) == []
    (tmp_path / "layers" / A.hex()).mkdir()
    (tmp_path / "layers" / A.hex() / "number").write_text("not one")
    with pytest.raises(NotFoundError):
        places.of(A)
    assert places.make(A).is_dir()


def test_what_is_in_use_is_not_removed(places: Mountpoints) -> None:
    mountpoint = places.make(A)
    (mountpoint / "file").touch()
    with pytest.raises(UnavailableError, match="cannot be removed"):
        mountpoints.remove(mountpoint)
    (mountpoint / "file").unlink()
    mountpoints.remove(mountpoint)
    mountpoints.remove(mountpoint)
    assert not mountpoint.exists()
