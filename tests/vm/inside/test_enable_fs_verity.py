"""`enable-fs-verity` and `mount --digest` with a kernel that has fs-verity: what changes on the disk is never seen."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from snapshotter.cli.local import build, enable_fs_verity, extract, mount, umount
from snapshotter.errors import CorruptError
from tests.vm.disk import flip_on_disk


def run(command: object, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(word) for word in arguments])  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [(), ("-c",)], ids=["raw", "zstd"])
def test_a_sealed_image(verity_disk: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "text").write_bytes(b"the same words again and again " * 3000)
    (tree / "more").write_bytes(bytes(range(256)) * 300)
    image = f"{verity_disk}/image:v"
    built = run(build, *options, tree, image)
    digest = built.output.split()[-1]
    assert isinstance(run(enable_fs_verity, image, "0" * 64).exception, CorruptError)
    done = run(enable_fs_verity, image, digest.upper())
    assert done.exit_code == 0, done.output
    blobs = sorted((verity_disk / "image" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    for blob in blobs:
        with pytest.raises(PermissionError):
            blob.open("r+b")
    done = run(extract, image, tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "text").read_bytes() == (tree / "text").read_bytes()
    flip_on_disk(blobs[-1], 10)
    with pytest.raises(OSError) as failed:
        blobs[-1].read_bytes()
    assert failed.value.errno == errno.EIO
    assert run(extract, image, tmp_path / "again").exception is not None
    assert not (tmp_path / "again").exists()


def test_mounted_by_its_digest(verity_disk: Path, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(b"content")
    image = f"{verity_disk}/image:v"
    digest = run(build, tmp_path / "tree", image).output.split()[-1]
    assert run(enable_fs_verity, image, digest).exit_code == 0
    (tmp_path / "m").mkdir()
    assert run(mount, "-d", "1" * 64, image, tmp_path / "m").exit_code == 5
    assert run(mount, "-d", digest, image, tmp_path / "m").exit_code == 0
    try:
        assert (tmp_path / "m" / "file").read_bytes() == b"content"
    finally:
        run(umount, tmp_path / "m")


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "unsealed"])
def test_a_flipped_bit_is_refused_through_the_mount(verity_disk: Path, tmp_path: Path, sealed: bool) -> None:
    """By the kernel where the chunk is sealed, by its name where it is not; what is beside it is read as before."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "damaged").write_bytes(bytes(range(256)) * 300)
    (tree / "whole").write_bytes(b"the same words again and again " * 3000)
    image = f"{verity_disk}/image:v"
    digest = run(build, tree, image).output.split()[-1]
    if sealed:
        assert run(enable_fs_verity, image, digest).exit_code == 0
    blobs = sorted((verity_disk / "image" / "blobs" / "sha256").iterdir())
    chunk = next(blob for blob in blobs if blob.read_bytes() == (tree / "damaged").read_bytes())
    (tmp_path / "m").mkdir()
    arguments = ("-d", digest) if sealed else ()
    assert run(mount, *arguments, image, tmp_path / "m").exit_code == 0
    try:
        flip_on_disk(chunk, 40_000)
        with pytest.raises(OSError) as failed:
            (tmp_path / "m" / "damaged").read_bytes()
        assert failed.value.errno == errno.EIO
        assert (tmp_path / "m" / "whole").read_bytes() == (tree / "whole").read_bytes()
    finally:
        run(umount, tmp_path / "m")
