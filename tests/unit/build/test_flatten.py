"""The union of layers is what overlayfs shows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapshotter.build.entries import Node, from_rootfs, inodes, number
from snapshotter.build.flatten import flatten
from snapshotter.build.resolve import find_in_union
from snapshotter.format.model import Kind
from snapshotter.format.rootfs import Rootfs
from snapshotter.format.writer import encode
from tests.support.builds import Builder, at, names
from tests.support.images import Layer
from tests.support.strategies import Item, tar_of, trees


@pytest.fixture
def builder() -> Iterator[Builder]:
    with Builder() as made:
        yield made


def union(builder: Builder, *tars: bytes) -> Node:
    layers = [builder.rootfs(tree) for tree in builder.tars(*tars)]
    content = flatten(layers)
    for layer in layers:
        layer.close()
    rootfs = Rootfs.open(encode(content))
    tree = from_rootfs(rootfs)
    assert {entry.digest for entry in rootfs.verities()} == {
        chunk.digest for found in number(tree).contents() for chunk in found.chunks or ()
    }
    rootfs.close()
    return tree


def test_whiteouts_opaque_directories_and_merging(builder: Builder) -> None:
    low = Layer()
    for name in (b"both/low", b"opaque/low", b"gone/low", b"file", b"dir/low", b"kept", b"deep/a/b/low"):
        low.file(name, name)
    up = Layer()
    up.file(b"both/up", b"up")
    up.file(b"opaque/up", b"up")
    up.opaque(b"opaque")
    up.whiteout(b"gone")
    up.directory(b"file", 0o700)
    up.file(b"file/up", b"up")
    up.file(b"dir", b"now a file")
    up.whiteout(b"deep/a/b/low")
    up.whiteout(b"never/was")
    tree = union(builder, low.tar(), up.tar())
    assert names(tree) == {
        *(b"both/", b"both/low", b"both/up", b"opaque/", b"opaque/up", b"file/", b"file/up", b"dir", b"kept"),
        *(b"deep/", b"deep/a/", b"deep/a/b/", b"never/"),
    }
    assert builder.content(at(tree, b"dir")) == b"now a file"
    assert builder.content(at(tree, b"kept")) == b"kept"


def test_what_was_removed_and_made_again_does_not_show_through(builder: Builder) -> None:
    low, middle, top = Layer(), Layer(), Layer()
    low.file(b"d/old", b"")
    middle.whiteout(b"d")
    top.file(b"d/new", b"")
    assert names(union(builder, low.tar(), middle.tar(), top.tar())) == {b"d/", b"d/new"}


def test_the_topmost_attributes_count(builder: Builder) -> None:
    low, up = Layer(), Layer()
    low.directory(b"d", 0o700, owner=(1, 1))
    up.directory(b"d", 0o711, owner=(2, 2))
    assert (at(union(builder, low.tar(), up.tar()), b"d").permissions, at(union(builder, low.tar(), up.tar()), b"d").uid) == (
        0o711,
        2,
    )


def test_a_copy_up_breaks_a_hard_link(builder: Builder) -> None:
    low, up = Layer(), Layer()
    low.file(b"a", b"old")
    low.hardlink(b"b", b"a")
    low.hardlink(b"c", b"a")
    up.file(b"b", b"new")
    tree = union(builder, low.tar(), up.tar())
    assert at(tree, b"a") is at(tree, b"c")
    assert builder.content(at(tree, b"b")) == b"new"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(trees(size=8), min_size=1, max_size=4))
def test_every_name_of_the_union_is_what_a_lookup_through_the_layers_finds(layers: list[list[Item]]) -> None:
    with Builder() as builder:
        built = builder.tars(*(tar_of([item for item in layer if item.kind != b"1"]) for layer in layers))
        roots = [builder.rootfs(tree) for tree in built]
        merged = from_rootfs(Rootfs.open(encode(flatten(roots))))
        for rootfs in roots:
            rootfs.close()
        for path in names(merged):
            place = path.rstrip(b"/").split(b"/")
            _, found = find_in_union(built[::-1], place)
            assert found is not None
            assert (found.kind, found.permissions, found.uid, found.target) == (
                at(merged, b"/".join(place)).kind,
                at(merged, b"/".join(place)).permissions,
                at(merged, b"/".join(place)).uid,
                at(merged, b"/".join(place)).target,
            )
        for tree in built:
            for path in names(tree):
                place = path.rstrip(b"/").split(b"/")
                resolved, found = find_in_union(built[::-1], place)
                if found is not None and resolved == place:
                    assert b"/".join(place) in {name.rstrip(b"/") for name in names(merged)}


def test_one_layer_alone_loses_its_whiteouts_only(builder: Builder) -> None:
    layer = Layer()
    layer.file(b"f", b"x")
    layer.whiteout(b"gone")
    tree = builder.tar(layer.tar())
    rootfs = builder.rootfs(tree)
    (found,) = flatten([rootfs]).layers
    rootfs.close()
    del tree.names()[b"gone"]
    assert list(found) == inodes(number(tree))
    assert {inode.kind for inode in found} == {Kind.DIR, Kind.FILE}
