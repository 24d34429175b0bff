"""The laws of building: the same tree is the same bytes, whatever it came from and in whatever order."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapshotter.build.chunk import Cutter, Cutting, Memory
from snapshotter.build.content import BuiltLayer
from snapshotter.build.entries import from_rootfs, inodes, number
from snapshotter.build.extract import extract
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.model import Kind
from snapshotter.format.verity import verity_digest
from tests.support.builds import SMALL, Builder, at
from tests.support.chunks import some_chunks
from tests.support.golden_data import noise
from tests.support.images import Layer
from tests.support.strategies import Item, reordered, tar_of, trees
from tests.support.trees import differences, look

GOLDEN = Path(__file__).parents[2] / "golden" / "upstream"

laws = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def contents(layer: BuiltLayer) -> tuple[bytes, list[Digest]]:
    """What can be compared of a layer."""
    return layer.message.to_bytes(), list(layer.chunks)


@laws
@given(trees(), st.data())
def test_the_order_of_a_tar_does_not_matter(items: list[Item], data: st.DataObject) -> None:
    with Builder() as one, Builder() as other:
        first = contents(one.layer(one.tar(tar_of(items))))
        second = contents(other.layer(other.tar(tar_of(data.draw(reordered(items))))))
        assert first == second


@laws
@given(trees())
def test_the_message_says_what_the_tree_says(items: list[Item]) -> None:
    with Builder() as builder:
        tree = builder.tar(tar_of(items))
        rootfs = builder.rootfs(tree)
        assert contents(builder.layer(from_rootfs(rootfs))) == contents(builder.layer(tree))
        for item in items:
            if item.data:
                assert builder.content(at(tree, item.path)) == item.data
        assert {entry.digest for entry in rootfs.verities()} == set(builder.layer(tree).chunks)
        for entry in rootfs.verities():
            raw = builder.raw(entry.digest)
            assert (sha256(raw), verity_digest(raw)) == (entry.digest, entry.verity)
        rootfs.close()


@pytest.mark.root
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trees())
def test_a_tar_and_the_directory_that_it_unpacks_to_are_the_same_layer(items: list[Item]) -> None:
    with Builder() as one, Builder() as other, tempfile.TemporaryDirectory() as scratch:
        from_tar = contents(one.layer(one.tar(tar_of(items))))
        rootfs = one.rootfs(one.tar(tar_of(items)))
        done = extract(rootfs, one, scratch)
        rootfs.close()
        assert done.problems == []
        assert contents(other.layer(other.directory(Path(scratch)))) == from_tar


@pytest.mark.root
@pytest.mark.parametrize("style", ["gnu", "posix"])
def test_gnu_tar_of_a_directory_is_the_same_layer_as_the_directory(tmp_path: Path, style: str) -> None:
    """Upstream's golden tree: all types, hard links, xattrs, ACLs, modes, owners, names; and what is extracted is equal too."""
    tree = tmp_path / "tree"
    subprocess.run([sys.executable, GOLDEN / "basic" / "make-tree", tree], check=True)
    for name in ("nodes/socket", "hard/pipe-2", "hard/sym-2"):  # tar knows no sockets, and links regular files only
        (tree / name).unlink()
    os.removexattr(tree / "xattrs" / "symlink", "trusted.on-a-symlink", follow_symlinks=False)
    os.removexattr(tree / "xattrs" / "all", "trusted.two")
    if style == "gnu":
        for path in tree.rglob("*"):  # GNU's own format has neither xattrs nor parts of seconds
            for key in os.listxattr(path, follow_symlinks=False):
                os.removexattr(path, key, follow_symlinks=False)
            os.utime(path, (1_700_000_000, 1_700_000_000), follow_symlinks=False)
    os.utime(tree, (1, 1))
    options = ["--xattrs", "--xattrs-include=*"] if style == "posix" else []
    command = ["tar", "-C", tree, f"--format={style}", "--numeric-owner", *options, "-cf", "-", "."]
    tar = subprocess.run(command, check=True, capture_output=True).stdout
    with Builder(Cutting()) as one, Builder(Cutting()) as other:
        built = one.tar(tar)
        drop = {b"system.posix_acl_access", b"system.posix_acl_default"}
        walked = other.directory(tree)
        for _, node in [*number(walked), *number(built)]:
            node.xattrs = {key: value for key, value in node.xattrs.items() if key not in drop}
        assert inodes(number(built)) == inodes(number(walked))


@pytest.mark.root
def test_walk_and_extract_are_inverse(tmp_path: Path) -> None:
    tree, out = tmp_path / "tree", tmp_path / "out"
    subprocess.run([sys.executable, GOLDEN / "basic" / "make-tree", tree], check=True)
    with Builder(Cutting()) as builder:
        rootfs = builder.rootfs(builder.directory(tree))
        done = extract(rootfs, builder, out)
        rootfs.close()
        assert done.problems == []
    assert differences(look(os.fsencode(tree)), look(os.fsencode(out))) == []


def test_without_times_a_message_is_shorter_and_has_none() -> None:
    with Builder() as builder:
        layer = Layer()
        layer.file(b"f", b"x")
        tree = builder.tar(layer.tar())
        message = builder.layer(tree, times=False).message.to_bytes()
        assert message != builder.layer(tree).message.to_bytes()


def test_small_files_are_run_together_and_large_ones_start_a_chunk() -> None:
    large = some_chunks(1, 1, SMALL.align or 0)[0]
    layer = Layer()
    layer.file(b"b", large)
    layer.file(b"c", b"second")
    layer.file(b"a", b"first")
    with Builder() as builder:
        tree = builder.tar(layer.tar())
        contents = {name: at(tree, name).content for name in (b"a", b"b", b"c")}
        first, alone, second = (contents[name].chunks for name in (b"a", b"b", b"c"))  # type: ignore[union-attr]
        assert first is not None
        assert second is not None
        assert alone is not None
        assert first[0].digest == second[0].digest == sha256(b"firstsecond")
        assert (first[0].offset, second[0].offset, alone[0].offset) == (0, 5, 0)


def test_a_run_of_small_files_ends_with_the_directory_in_which_it_is_long_enough() -> None:
    layer = Layer()
    for directory, name, size in ((b"a", b"1", 100), (b"b", b"2", 150), (b"b", b"3", 60), (b"c", b"4", 300), (b"d", b"5", 1)):
        layer.file(directory + b"/" + name, name * size)
    with Builder(replace(SMALL, group=300)) as builder:
        tree = builder.tar(layer.tar())
        runs = [at(tree, path).content.chunks[0] for path in (b"a/1", b"b/2", b"b/3", b"c/4", b"d/5")]  # type: ignore[union-attr, index]
    first = sha256(b"1" * 100 + b"2" * 150 + b"3" * 60)
    assert [(chunk.digest, chunk.offset) for chunk in runs] == [
        (first, 0),
        (first, 100),
        (first, 250),
        (sha256(b"4" * 300), 0),
        (sha256(b"5"), 0),
    ]


def test_what_changes_in_one_directory_changes_no_chunk_of_another() -> None:
    def chunks(data: bytes) -> set[Digest]:
        layer = Layer()
        for place in range(40):
            layer.file(b"%02d/small" % place, data if place == 7 else noise(str(place), 450))
        with Builder(replace(SMALL, group=400)) as builder:
            return set(builder.layer(builder.tar(layer.tar())).chunks)

    assert len(chunks(b"before" * 70) ^ chunks(b"after" * 90)) == 2


LARGE = replace(SMALL, large=30_000)


@pytest.mark.parametrize(("size", "expected"), [(29_999, LARGE), (30_000, LARGE.of_large()), (30_001, LARGE.of_large())])
def test_a_file_is_cut_by_its_size(tmp_path: Path, size: int, expected: Cutting) -> None:
    """From a tar, where it is cut as it passes, as from a directory; of equal bytes in other files nothing matters."""
    data = noise("by its size", size)
    memory = Memory(expected.maximum)
    lengths = [len(memory.take(length)) for length, _ in Cutter(expected).cut(io.BytesIO(data), memory)]
    layer = Layer()
    for name, content in ((b"before", noise("before", 5000)), (b"it", data), (b"small", b"x" * 300)):
        (tmp_path / name.decode()).write_bytes(content)
        layer.file(name, content)
    with Builder(LARGE) as one, Builder(LARGE) as other:
        trees = [one.tar(layer.tar()), other.directory(tmp_path)]
        for builder, tree in zip((one, other), trees, strict=True):
            content = at(tree, b"it").content
            assert content is not None and content.chunks is not None  # noqa: PT018
            assert [chunk.length for chunk in content.chunks] == lengths
            assert builder.content(at(tree, b"it")) == data
            before = at(tree, b"before").content
            assert before is not None and before.chunks is not None  # noqa: PT018
            assert max(chunk.length for chunk in before.chunks) <= LARGE.maximum


def test_a_large_sparse_file_is_cut_as_one_with_zeros(tmp_path: Path) -> None:
    runs = ((70_000, b"begin"), (40_001, noise("middle", 9000)), (90_000, b"end"))
    data = b"".join(bytes(hole) + content for hole, content in runs)
    (tmp_path / "sparse").write_bytes(data)
    subprocess.run(["cp", "--sparse=always", "sparse", "holes"], cwd=tmp_path, check=True)
    with Builder(LARGE) as builder:
        tars = [
            subprocess.run(["tar", "-C", tmp_path, option, "-cf", "-", "holes"], check=True, capture_output=True).stdout
            for option in ("--sparse", "--format=gnu")
        ]
        sparse, whole = (at(builder.tar(tar), b"holes").content for tar in tars)
    assert len(tars[0]) < len(tars[1])
    assert sparse is not None and whole is not None and sparse.chunks == whole.chunks  # noqa: PT018


@laws
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 60_000)), min_size=1, max_size=4), st.integers(1, 70_000))
def test_whatever_is_large_the_bytes_are_the_files(files: list[tuple[int, int]], large: int) -> None:
    cutting = replace(SMALL, large=large)
    layer = Layer()
    for place, (seed, size) in enumerate(files):
        layer.file(b"%d" % place, noise(str(seed), size))
    with Builder(cutting) as builder, Builder(cutting) as other:
        tree = builder.tar(layer.tar())
        assert contents(builder.layer(tree)) == contents(other.layer(other.tar(layer.tar())))
        for place, (seed, size) in enumerate(files):
            node = at(tree, b"%d" % place)
            assert builder.content(node) == noise(str(seed), size)
            assert node.content is not None and node.content.chunks is not None  # noqa: PT018
            longest = cutting.longest if size >= max(large, SMALL.align or 0) else cutting.maximum
            assert all(chunk.length <= longest for chunk in node.content.chunks)


def test_equal_data_is_one_chunk() -> None:
    data = some_chunks(2, 3, 3000)[1]
    layer = Layer()
    for name in (b"x", b"y"):
        layer.file(name, data)
    with Builder() as builder:
        tree = builder.tar(layer.tar())
        chunks = builder.layer(tree).chunks
        assert (
            len(chunks) == len(set(chunks)) == sum(builder.spool.place(digest) is not None for digest in builder.spool.digests)
        )


def test_no_temporary_file_has_a_name(tmp_path: Path) -> None:
    layer = Layer()
    layer.file(b"small", b"x" * 100)
    layer.file(b"large", bytes(5_000_000))
    with Builder(temporary=tmp_path) as builder:
        builder.tar(layer.tar())
        assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_middle_ends_the_threads() -> None:
    import threading

    layer = Layer()
    layer.file(b"large", bytes(3_000_000))
    with Builder() as builder, pytest.raises(Exception, match="ends at byte"):
        builder.tar(layer.tar()[:1_000_000])
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith(("layer-stream", "encode"))] == []


def test_a_whiteout_is_part_of_the_message() -> None:
    layer = Layer()
    layer.whiteout(b"gone")
    with Builder() as builder:
        rootfs = builder.rootfs(builder.tar(layer.tar()))
        number_of_it = rootfs.inode(1).entries[0].ino
        assert rootfs.inode(number_of_it).kind is Kind.WHT
        rootfs.close()


def test_the_holes_of_a_sparse_member_are_cut_as_its_zeros_are(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        for offset in (0, 5_000_000, 5_100_000, 30_000_000):
            file.seek(offset)
            file.write(noise(f"at {offset}", 70_000))
        file.truncate(40_000_000)

    def tar(*options: str) -> bytes:
        command = ["tar", "-C", tmp_path, "--hole-detection=raw", *options, "-cf", "-", "sparse"]
        return subprocess.run(command, check=True, capture_output=True).stdout

    with Builder(Cutting()) as builder:
        plain, sparse = builder.tar(tar()), builder.tar(tar("--sparse"))
        assert builder.layer(sparse).message.to_bytes() == builder.layer(plain).message.to_bytes()
        assert builder.content(at(sparse, b"sparse")) == (tmp_path / "sparse").read_bytes()
