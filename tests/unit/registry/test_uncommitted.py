"""A writer that fails takes back what it has put, and nothing that anybody else may count on."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from snapshotter.format.digest import sha256
from snapshotter.registry.base import Descriptor
from snapshotter.registry.documents import OCI_MANIFEST
from snapshotter.registry.layout import LayoutStore

MANIFEST = b'{"schemaVersion":2,"config":{},"layers":[]}'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "layout"


def store(root: Path) -> LayoutStore:
    return LayoutStore(root, durable=False, undo=True)


def put(layout: LayoutStore, data: bytes) -> bool:
    return layout.put_blob(Descriptor("", sha256(data), len(data)), io.BytesIO(data))


def tag(layout: LayoutStore, name: str | None = "v1", manifest: bytes = MANIFEST) -> None:
    layout.put_manifest(Descriptor(OCI_MANIFEST, sha256(manifest), len(manifest)), manifest, name)


def blobs(root: Path) -> set[str]:
    return set(os.listdir(root / "blobs" / "sha256"))


def test_what_no_tag_names_is_gone_and_so_is_the_layout_that_was_made_for_it(root: Path) -> None:
    layout = store(root)
    put(layout, b"one")
    tag(layout, None)
    assert len(blobs(root)) == 2
    layout.close()
    assert not root.exists()
    layout.close()


def test_a_directory_that_was_there_stays(root: Path) -> None:
    root.mkdir()
    layout = store(root)
    put(layout, b"one")
    layout.close()
    assert list(root.iterdir()) == []


def test_what_a_tag_names_stays(root: Path) -> None:
    layout = store(root)
    put(layout, b"one")
    tag(layout)
    put(layout, b"two")
    layout.close()
    assert blobs(root) == {sha256(b"one").hex(), sha256(MANIFEST).hex()}
    assert list(store(root).tags()) == ["v1"]


def test_what_was_there_before_stays(root: Path) -> None:
    first = store(root)
    put(first, b"one")
    tag(first)
    first.close()
    second = store(root)
    assert not put(second, b"one")
    put(second, b"two")
    second.close()
    assert sha256(b"one").hex() in blobs(root)
    assert sha256(b"two").hex() not in blobs(root)


def test_what_another_writer_may_count_on_stays(root: Path) -> None:
    failing, other = store(root), store(root)
    put(failing, b"shared")
    assert not put(other, b"shared")  # it found it there
    failing.close()
    tag(other)
    other.close()
    assert sha256(b"shared").hex() in blobs(root)


def test_a_writer_that_is_never_closed_leaves_it_all(root: Path) -> None:
    for undo, data in ((True, b"one"), (False, b"two")):
        put(LayoutStore(root, durable=False, undo=undo), data)
    LayoutStore(root, durable=False).close()
    assert blobs(root) == {sha256(b"one").hex(), sha256(b"two").hex()}
