"""`enable-fs-verity`: every file of the image, each compared before it is sealed; the kernel's part is in tests/vm."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from snapshotter.build.layout import build_layout
from snapshotter.build.push import push
from snapshotter.build.sealing import Sealed, seal_image
from snapshotter.build.upstream import build_upstream
from snapshotter.errors import CorruptError, NotFoundError, UnsupportedError
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.verity import verity_digest
from snapshotter.registry.layout import LayoutStore
from snapshotter.registry.platforms import Platform
from tests.support.samples import noise


class Kernel:
    """A file system with fs-verity: which files are sealed, by name."""

    def __init__(self, failure: int | None = None) -> None:
        self.sealed: set[str] = set()
        self._failure = failure

    def enable(self, descriptor: int, /) -> None:
        if self._failure is not None:
            raise OSError(self._failure, os.strerror(self._failure))
        self.sealed.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    def measure(self, descriptor: int, /) -> bytes | None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        return verity_digest(path.read_bytes()) if path.name in self.sealed else None


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "text").write_bytes(b"again and " * 30_000)
    (tmp_path / "tree" / "noise").write_bytes(noise(200_000, 1))
    return tmp_path / "tree"


@pytest.fixture
def store(tmp_path: Path) -> LayoutStore:
    return LayoutStore(tmp_path / "layout", durable=False)


def names(store: LayoutStore) -> set[str]:
    return {path.name for path in (store.root / "blobs" / "sha256").iterdir()}


def seal(store: LayoutStore, tag: str, digest: bytes, kernel: Kernel) -> Sealed:
    return seal_image(store, tag, digest, kernel, Platform.of_this_machine())


@pytest.mark.parametrize("compress", [False, True])
def test_every_file_of_a_local_image_and_of_its_base(tree: Path, store: LayoutStore, compress: bool) -> None:
    first = build_layout(tree, store, "v1", compress=compress)
    (tree / "more").write_bytes(noise(100_000, 2))
    built = build_layout(tree, store, "v2", base="v1", compress=compress)
    kernel = Kernel()
    done = seal(store, "v2", built.verity, kernel)
    older = {store.manifest("v1")[0].digest.hex(), *(layer for layer in names(store) - kernel.sealed)}
    assert kernel.sealed >= names(store) - older
    assert (done.files, done.unrecorded) == (len(kernel.sealed), 0)
    assert seal(store, "v2", built.verity, kernel) == done  # again is no error
    assert seal(store, "v1", first.verity, kernel).files > 0


def test_an_image_in_our_form(tree: Path, store: LayoutStore, tmp_path: Path) -> None:
    build_layout(tree, store, "local")
    target = LayoutStore(tmp_path / "target", durable=False)
    push(store, "local", target, "v")
    kernel = Kernel()
    seal(target, "v", verity_digest(target.manifest("v")[1]), kernel)
    assert kernel.sealed == names(target)


def test_upstreams_wrong_records_are_told_apart_from_wrong_files(tree: Path, store: LayoutStore) -> None:
    built = build_upstream(tree, store, "v", compress=True)
    done = seal(store, "v", built.verity, Kernel())
    assert done.unrecorded > 0


def test_another_manifest(tree: Path, store: LayoutStore) -> None:
    build_layout(tree, store, "v")
    kernel = Kernel()
    with pytest.raises(CorruptError, match="has the fs-verity digest"):
        seal(store, "v", bytes(32), kernel)
    assert not kernel.sealed


def test_a_file_that_is_wrong_is_not_sealed(tree: Path, store: LayoutStore) -> None:
    built = build_layout(tree, store, "v")
    largest = max((store.root / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(b"x" * largest.stat().st_size)
    kernel = Kernel()
    with pytest.raises(CorruptError, match=largest.name):
        seal(store, "v", built.verity, kernel)
    assert largest.name not in kernel.sealed
    largest.unlink()
    with pytest.raises(NotFoundError, match=f"{largest.name}.* is missing"):
        seal(store, "v", built.verity, kernel)


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOTTY])
def test_a_file_system_without_fs_verity(tree: Path, store: LayoutStore, number: int) -> None:
    built = build_layout(tree, store, "v")
    with pytest.raises(UnsupportedError, match="no fs-verity"):
        seal(store, "v", built.verity, Kernel(number))


def test_the_path_of_a_blob(store: LayoutStore) -> None:
    digest: Digest = sha256(b"x")
    assert store.blob_path(digest) == store.root / "blobs" / "sha256" / digest.hex()
