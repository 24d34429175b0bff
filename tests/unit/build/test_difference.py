"""What an image holds, and what a node with one image fetches for another."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapshotter.build.contents import manifests, opened
from snapshotter.build.difference import Difference, difference
from snapshotter.build.image import Options
from snapshotter.build.inspection import ImageFigures, inspect
from snapshotter.build.layout import build_layout
from snapshotter.build.optimize import optimize
from snapshotter.build.push import push
from snapshotter.registry.layout import LayoutStore
from snapshotter.registry.platforms import Platform
from tests.support.builds import SMALL
from tests.support.samples import noise

OPTIONS = Options(cutting=SMALL, workers=2)


@pytest.fixture
def store(tmp_path: Path) -> LayoutStore:
    return LayoutStore(tmp_path / "layout", durable=False)


def tree(path: Path, seed: int) -> Path:
    path.mkdir()
    (path / "large").write_bytes(noise(40_000, 1))
    (path / "changed").write_bytes(noise(20_000, 2) + noise(20_000, seed))
    (path / "twin").write_bytes(noise(40_000, 1))
    for number in range(5):
        (path / f"small{number}").write_bytes(b"%d " % (number * seed) * 30)
    return path


def diff(store: LayoutStore, old: str, new: str) -> Difference:
    with (
        opened(store, manifests(store, old)[0]) as first,
        opened(store, manifests(store, new)[0]) as second,
    ):
        return difference(first, second)


def figures(store: LayoutStore, tag: str) -> ImageFigures:
    with opened(store, manifests(store, tag)[0]) as image:
        return inspect(image)


@pytest.fixture
def images(tmp_path: Path, store: LayoutStore) -> LayoutStore:
    for name, seed in (("a", 3), ("b", 4)):
        made = tree(tmp_path / name, seed)
        build_layout(made, store, f"{name}-raw", options=OPTIONS)
        build_layout(made, store, f"{name}-zstd", compress=True, options=OPTIONS)
        push(store, f"{name}-raw", store, name, options=OPTIONS)
    return store


def test_nothing_is_fetched_for_what_is_there(images: LayoutStore) -> None:
    found = diff(images, "a", "a")
    assert (found.total, found.files) == (0, [])
    assert found.have_bytes == figures(images, "a").unique_bytes


def test_only_changed_chunks_are_fetched(images: LayoutStore) -> None:
    found = diff(images, "a", "b")
    by_path = {file.path: file for file in found.files}
    assert set(by_path) == {"/changed", *(f"/small{number}" for number in range(5))}  # small files share a chunk
    assert 20_000 <= by_path["/changed"].new <= 20_000 + SMALL.longest
    assert by_path["/changed"].size == 40_000
    assert sum(file.fetch for file in found.files) == found.chunk_bytes
    assert found.total == found.documents + found.metadata + found.indexes + found.chunk_bytes
    assert found.files[0].path == "/changed"
    # The new pack holds the new chunks and its index, and nothing else.
    new = {pack.digest: pack for pack in figures(images, "b").packs}
    (pack,) = [pack for digest, pack in new.items() if digest not in {p.digest for p in figures(images, "a").packs}]
    assert (pack.chunks, pack.needed_chunks, pack.needed_bytes) == (found.chunks, found.chunks, found.chunk_bytes)
    assert pack.size - found.chunk_bytes - found.indexes < 100


@pytest.mark.parametrize("old", ["a-raw", "a-zstd"])
@pytest.mark.parametrize("new", ["b", "b-raw", "b-zstd"])
def test_how_an_image_stores_its_chunks_makes_no_difference(images: LayoutStore, old: str, new: str) -> None:
    packed, other = diff(images, "a", "b"), diff(images, old, new)
    assert (other.chunks, other.raw_bytes, other.have_bytes) == (packed.chunks, packed.raw_bytes, packed.have_bytes)
    assert [(f.path, f.new) for f in sorted(other.files, key=lambda f: f.path)] == [
        (f.path, f.new) for f in sorted(packed.files, key=lambda f: f.path)
    ]


@pytest.mark.parametrize("tag", ["a", "a-raw", "a-zstd"])
def test_figures(images: LayoutStore, tag: str) -> None:
    found = figures(images, tag)
    (layer,) = found.layers
    size = 120_000 + sum(len(b"%d " % (number * 3) * 30) for number in range(5))
    assert found.file_bytes == layer.file_bytes == size
    assert found.unique_bytes == layer.chunk_bytes == size - 40_000  # the twin
    assert (layer.files, layer.directories, layer.whiteouts, layer.shared_bytes) == (8, 1, 0, 0)
    assert (found.inodes, found.missing_chunks, found.chunks) == (9, 0, layer.chunks)
    assert found.chunk_references > found.chunks
    if tag == "a-raw":
        assert found.stored_bytes == found.unique_bytes
    else:
        assert found.stored_bytes < found.unique_bytes
    assert found.download > found.stored_bytes


def test_a_profile_is_a_copy(images: LayoutStore) -> None:
    """Its pack is listed with what its groups take; what is fetched for files stays the same."""
    with opened(images, manifests(images, "b")[0]) as image:
        chunks = [entry.digest for _, index in image.packs.values() for entry in index][:9]
    optimize(images, "b", images, "fast", chunks, platform=Platform.of_this_machine())
    plain, fast = diff(images, "a", "b"), diff(images, "a", "fast")
    assert (fast.chunks, fast.raw_bytes) == (plain.chunks, plain.raw_bytes)
    assert [file.path for file in fast.files] == [file.path for file in plain.files]
    assert [pack.chunks for pack in figures(images, "fast").packs if pack.needed_chunks == 0] == [9]


def test_missing_chunks_are_counted(images: LayoutStore) -> None:
    with opened(images, manifests(images, "a-raw")[0]) as image:
        victim = image.image.manifest.layers[3].digest
    (images.root / "blobs" / "sha256" / victim.hex()).unlink()
    assert figures(images, "a-raw").missing_chunks == 1
