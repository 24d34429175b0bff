"""The checker finds every kind of disagreement, and none where there is none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from snapshotter.daemon import invariants
from snapshotter.daemon.invariants import Facts, LayerFacts
from snapshotter.errors import AlreadyExistsError, CorruptError, NotFoundError
from snapshotter.format.digest import chain_id, sha256, to_text
from snapshotter.snapshots.model import Info, Kind, Layer, Row
from snapshotter.snapshots.snapshotter import Snapshotter
from tests.support.layers import DirectoryLayers, labels_of, metadata

A, B = sha256(b"a"), sha256(b"b")


def row(number: int, name: str, kind: Kind, *, parent: int | None = None, layer: Layer = Layer.ORDINARY) -> Row:
    info = Info(name, "", kind, {}, 1, 1)
    lazy = layer is not Layer.ORDINARY
    return Row(number, info, layer, A if lazy else None, chain_id(None, A) if lazy else None, parent)


GOOD = Facts(
    rows=(
        row(1, f"ns/1/{to_text(A)}", Kind.COMMITTED, layer=Layer.METADATA),
        row(2, "active", Kind.ACTIVE, parent=1),
        row(3, "view", Kind.VIEW, parent=1),
        row(4, "ordinary", Kind.COMMITTED),
    ),
    hinted=frozenset({A}),
    directories={2: frozenset({"fs", "work"}), 3: frozenset({"fs"}), 4: frozenset({"fs", "work"})},
    layers={A: LayerFacts(metadata=True, number=7)},
    mountpoints=frozenset({7}),
    mounts={7: 1},
)


def test_nothing_is_wrong_with_what_agrees() -> None:
    assert list(invariants.broken(GOOD)) == list(invariants.garbage(GOOD)) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"database": ["metadata.db: malformed"]}, "malformed"),
        ({"rows": (*GOOD.rows, row(5, "orphan", Kind.ACTIVE, parent=9))}, "number 9, which does not exist"),
        ({"rows": (*GOOD.rows, row(5, "on view", Kind.COMMITTED, parent=3))}, "'view', which is not committed"),
        ({"rows": (*GOOD.rows, row(5, "v", Kind.VIEW, layer=Layer.PACK))}, "a view and a layer"),
        ({"rows": (replace(GOOD.rows[0], chain_id=B), *GOOD.rows[1:])}, "chain ID that its layer and its parent do not make"),
        ({"directories": {**GOOD.directories, 2: frozenset({"fs"})}}, "no directory s/2/work"),
        ({"directories": {2: frozenset({"fs", "work"}), 3: frozenset({"fs"})}}, "no directory s/4/fs"),
        ({"hinted": frozenset()}, "nothing says where it is from"),
        ({"layers": {A: LayerFacts(metadata=False, number=7)}}, "metadata is missing or wrong"),
        ({"layers": {A: LayerFacts(metadata=True, number=None)}}, "not mounted"),
        ({"mounts": {}}, "not mounted"),
        ({"mounts": {7: 2}}, "mounted 2 times"),
        ({"layers": {**GOOD.layers, B: LayerFacts(metadata=True, number=7)}}, "2 layers name the mountpoint l/7"),
    ],
)
def test_what_is_broken_is_said(change: dict[str, object], said: str) -> None:
    assert any(said in line for line in invariants.broken(replace(GOOD, **change))), list(  # type: ignore[arg-type]
        invariants.broken(replace(GOOD, **change))  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"directories": {**GOOD.directories, 8: frozenset()}}, "directory s/8 belongs to no snapshot"),
        ({"hinted": frozenset({A, B})}, "is remembered, and no snapshot uses it"),
        ({"layers": {**GOOD.layers, B: LayerFacts(metadata=True, number=8)}}, "is kept, and no snapshot uses it"),
        ({"mountpoints": frozenset({7, 8})}, "mountpoint l/8 belongs to no layer"),
        ({"mounts": {7: 1, 8: 1}}, "mounted on l/8, and no layer is kept for it"),
        ({"strays": ["s/new-x does not belong there"]}, "s/new-x"),
    ],
)
def test_what_is_left_over_is_said(change: dict[str, object], said: str) -> None:
    changed = replace(GOOD, **change)  # type: ignore[arg-type]
    assert any(said in line for line in invariants.garbage(changed)), list(invariants.garbage(changed))
    assert not [line for line in invariants.broken(changed) if said in line]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A root with an ordinary snapshot and one on it, whose snapshotter is at work."""
    layers = DirectoryLayers(tmp_path / "elsewhere")
    snapshotter = Snapshotter(tmp_path / "root", layers)
    snapshotter.prepare("key", "", {})
    snapshotter.commit("base", "key", {})
    snapshotter.prepare("active", "base", {})
    yield tmp_path / "root"
    snapshotter.close()


def test_a_root_in_use_is_looked_at(root: Path) -> None:
    assert invariants.settled(root) == invariants.Report((), ())
    assert invariants.examine(root, contents=True) == invariants.Report((), ())


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda root: os.rename(root / "s" / "1" / "fs", root / "s" / "1" / "gone"), "no directory s/1/fs"),
        (lambda root: (root / "s" / "77").mkdir(), "s/77 belongs to no snapshot"),
        (lambda root: (root / "s" / "new-x").mkdir(), "s/new-x does not belong there"),
        (lambda root: (root / "m" / "5").mkdir(parents=True), "m/5 shows directories to no snapshot"),
        (lambda root: (root / "l" / "5").mkdir(), "l/5 belongs to no layer"),
        (lambda root: (root / "layers" / A.hex()).mkdir(parents=True), "is kept, and no snapshot uses it"),
        (lambda root: _chunk(root, "ab" * 32, b"not it"), "does not hold the chunk"),
        (lambda root: _chunk(root, "cd" + "ab" * 31, b"", group="ab"), "not named as a chunk is"),
    ],
)
def test_damage_to_a_root_is_seen(root: Path, damage: Callable[[Path], object], said: str) -> None:
    damage(root)
    report = invariants.examine(root, contents=True)
    assert any(said in line for line in (*report.broken, *report.garbage)), report


def _chunk(root: Path, name: str, data: bytes, group: str | None = None) -> None:
    directory = root / "chunks" / (group or name[:2])
    directory.mkdir(parents=True)
    (directory / name).write_bytes(data)


def test_a_layer_without_a_mount_is_seen(tmp_path: Path) -> None:
    """Layers of this kind are plain directories elsewhere: for the checker they are missing."""
    snapshotter = Snapshotter(tmp_path / "root", DirectoryLayers(tmp_path / "elsewhere"))
    with pytest.raises(AlreadyExistsError):
        snapshotter.prepare("ns/1/extract", "", labels_of(metadata("one"), metadata("one").diff_id))
    assert any("metadata is missing" in line for line in invariants.examine(tmp_path / "root").broken)
    snapshotter.close()


def test_what_is_no_root_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no snapshotter's root"):
        invariants.examine(tmp_path)
    (tmp_path / "metadata.db").write_bytes(b"no database" * 100)
    with pytest.raises(CorruptError):
        invariants.examine(tmp_path)
