"""A layer's tar becomes the tree that containerd's overlayfs would have in its upper directory."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator

import pytest

from snapshotter.build import layer as layer_module
from snapshotter.build.entries import Node
from snapshotter.errors import InvalidError
from snapshotter.format.model import Kind
from tests.support.builds import Builder, at, names
from tests.support.images import SECOND, Layer

T = 1_700_000_000


@pytest.fixture
def builder() -> Iterator[Builder]:
    with Builder() as made:
        yield made


def tar(*calls: Callable[[Layer], None]) -> bytes:
    layer = Layer()
    for call in calls:
        call(layer)
    return layer.tar()


def directory(name: bytes, mode: int = 0o755, **more: object) -> Callable[[Layer], None]:
    return lambda layer: layer.directory(name, mode, **more)


def file(name: bytes, data: bytes = b"", mode: int = 0o644, **more: object) -> Callable[[Layer], None]:
    return lambda layer: layer.file(name, data, mode, **more)


def symlink(name: bytes, target: bytes, **more: object) -> Callable[[Layer], None]:
    return lambda layer: layer.symlink(name, target, **more)


def hardlink(name: bytes, target: bytes, mode: int = 0o644, **more: object) -> Callable[[Layer], None]:
    return lambda layer: layer.add(name, tarfile.LNKTYPE, mode, link=target, **more)  # type: ignore[arg-type]


def whiteout(name: bytes) -> Callable[[Layer], None]:
    return lambda layer: layer.whiteout(name)


def opaque(name: bytes) -> Callable[[Layer], None]:
    return lambda layer: layer.opaque(name)


def described(node: Node) -> tuple[Kind, int, int, int, int, int]:
    return node.kind, node.permissions, node.uid, node.gid, node.mtime, node.mtime_nsec


# Names and parents.


def test_members_and_their_attributes(builder: Builder) -> None:
    root = builder.tar(
        tar(
            directory(b"d", 0o2750, owner=(1, 2), mtime=T * SECOND + 5),
            file(b"d/f", b"data", 0o4711, owner=(3, 4), mtime=(T + 1) * SECOND + 6),
            symlink(b"l", b"d/f", owner=(5, 6), mtime=(T + 2) * SECOND),
            lambda layer: layer.fifo(b"p", 0o600),
            lambda layer: layer.character_device(b"c", (5, 300), 0o620),
            lambda layer: layer.block_device(b"b", (8, 70_000), 0o660),
        )
    )
    assert described(at(root, b"d")) == (Kind.DIR, 0o2750, 1, 2, T, 5)
    assert described(at(root, b"d/f")) == (Kind.FILE, 0o4711, 3, 4, T + 1, 6)
    assert builder.content(at(root, b"d/f")) == b"data"
    assert described(at(root, b"l")) == (Kind.LNK, 0o777, 5, 6, T + 2, 0)
    assert at(root, b"l").target == b"d/f"
    assert (at(root, b"p").kind, at(root, b"c").device, at(root, b"b").device) == (Kind.FIFO, (5, 300), (8, 70_000))


def test_the_root_member_gives_its_time_and_nothing_else(builder: Builder) -> None:
    root = builder.tar(tar(directory(b"./", 0o700, owner=(7, 7), mtime=T * SECOND + 1)))
    assert described(root) == (Kind.DIR, 0o755, 0, 0, T, 1)


@pytest.mark.parametrize("name", [b"a/b", b"/a/b", b"./a//b", b"../../a/b", b"a/x/../b", b"x/../../a/b"])
def test_names_are_made_canonical_and_stay_inside(builder: Builder, name: bytes) -> None:
    assert names(builder.tar(tar(file(name)))) == {b"a/", b"a/b"}


def test_symlinked_parents_lead_within_the_layer(builder: Builder) -> None:
    root = builder.tar(
        tar(
            directory(b"real"),
            symlink(b"relative", b"real"),
            symlink(b"absolute", b"/real"),
            symlink(b"outside", b"../../../real"),
            symlink(b"dangling", b"made/deep"),
            file(b"relative/1"),
            file(b"absolute/2"),
            file(b"outside/3"),
            file(b"dangling/4"),
        )
    )
    assert {b"real/1", b"real/2", b"real/3", b"made/", b"made/deep/", b"made/deep/4"} <= names(root)
    assert at(root, b"relative").kind is Kind.LNK


def test_a_symlink_of_an_earlier_layer_is_not_followed(builder: Builder) -> None:
    """As with overlayfs, where the upper directory alone is written to: lib becomes a directory, with usr/lib's attributes."""
    below = tar(directory(b"usr"), directory(b"usr/lib", 0o711, owner=(3, 3)), symlink(b"lib", b"usr/lib"))
    _, upper = builder.tars(below, tar(file(b"lib/x")))
    assert names(upper) == {b"lib/", b"lib/x"}
    assert described(at(upper, b"lib"))[:4] == (Kind.DIR, 0o711, 3, 3)


def test_a_loop_of_symlinks_is_refused(builder: Builder) -> None:
    with pytest.raises(InvalidError, match="more than 255 symlinks"):
        builder.tar(tar(symlink(b"a", b"b"), symlink(b"b", b"a"), file(b"a/x")))


def test_a_file_cannot_be_a_parent(builder: Builder) -> None:
    for bad in (file(b"f/x"), file(b"f/x/y"), whiteout(b"f/x")):
        with pytest.raises(InvalidError, match="not a directory"):
            builder.tar(tar(file(b"f"), bad))


def test_missing_parents_are_as_the_first_earlier_layer_has_them(builder: Builder) -> None:
    attributes = {"user.a": b"1", "security.b": b"2"}
    lowest = tar(
        directory(b"d", 0o700, owner=(1, 1)), directory(b"only", 0o750, owner=(2, 2), mtime=T * SECOND + 9, xattrs=attributes)
    )
    middle = tar(directory(b"d", 0o711, owner=(3, 3)))
    *_, top = builder.tars(lowest, middle, tar(file(b"d/x"), file(b"only/x"), file(b"new/x")))
    assert described(at(top, b"d"))[:4] == (Kind.DIR, 0o711, 3, 3)
    assert described(at(top, b"only")) == (Kind.DIR, 0o750, 2, 2, T, 9)
    assert at(top, b"only").xattrs == {b"user.a": b"1", b"security.b": b"2"}
    assert described(at(top, b"new")) == (Kind.DIR, 0o755, 0, 0, 0, 0)


@pytest.mark.parametrize("covering", [whiteout(b"d"), file(b"d"), symlink(b"d", b"f")])
def test_what_replaced_the_parent_ends_the_search(builder: Builder, covering: Callable[[Layer], None]) -> None:
    *_, top = builder.tars(tar(directory(b"d", 0o700, owner=(1, 1))), tar(file(b"f"), covering), tar(file(b"d/x")))
    assert described(at(top, b"d"))[1:4] == (0o755, 0, 0)


def test_a_symlink_that_leads_nowhere_in_its_layer_does_not_end_it(builder: Builder) -> None:
    *_, top = builder.tars(tar(directory(b"d", 0o700, owner=(1, 1))), tar(symlink(b"d", b"usr/d")), tar(file(b"d/x")))
    assert described(at(top, b"d"))[1:4] == (0o700, 1, 1)


# Replacing and merging.


def test_a_later_member_replaces_an_earlier_one(builder: Builder) -> None:
    root = builder.tar(tar(file(b"x", b"first", xattrs={"user.a": b"1"}), file(b"x", b"second")))
    assert builder.content(at(root, b"x")) == b"second"
    assert at(root, b"x").xattrs == {}
    root = builder.tar(tar(directory(b"d"), file(b"d/in"), file(b"d", b"now a file")))
    assert names(root) == {b"d"}


def test_a_directory_again_changes_its_attributes_and_keeps_its_entries(builder: Builder) -> None:
    root = builder.tar(
        tar(
            directory(b"d", 0o700, xattrs={"user.a": b"1"}),
            file(b"d/in"),
            directory(b"d", 0o711, owner=(4, 4), mtime=T * SECOND, xattrs={"user.b": b"2"}),
        )
    )
    assert names(root) == {b"d/", b"d/in"}
    assert described(at(root, b"d")) == (Kind.DIR, 0o711, 4, 4, T, 0)
    assert at(root, b"d").xattrs == {b"user.a": b"1", b"user.b": b"2"}


def test_a_replaced_directory_is_not_remembered_as_a_parent(builder: Builder) -> None:
    root = builder.tar(tar(directory(b"a"), file(b"a/1"), directory(b"b"), symlink(b"a", b"b"), file(b"a/2")))
    assert names(root) == {b"a", b"b/", b"b/2"}


# Whiteouts.


def test_whiteouts_and_opaque_directories(builder: Builder) -> None:
    layer = Layer()
    layer.add(b"d/.wh.gone", tarfile.REGTYPE, 0o644, owner=(5, 6))
    layer.opaque(b"o")
    layer.file(b"o/new", b"")
    root = builder.tar(layer.tar())
    gone = at(root, b"d/gone")
    assert (gone.kind, gone.uid, gone.gid) == (Kind.WHT, 5, 6)
    assert (at(root, b"o").look_below, at(root, b"d").look_below, root.look_below) == (False, True, True)
    assert names(root) == {b"d/", b"d/gone!", b"o/", b"o/new"}


def test_a_directory_that_comes_after_its_opaque_marker_stays_opaque(builder: Builder) -> None:
    root = builder.tar(tar(opaque(b"o"), directory(b"o", 0o700)))
    assert (at(root, b"o").look_below, at(root, b"o").permissions) == (False, 0o700)


def test_an_opaque_root_hides_nothing_as_overlayfs_has_it(builder: Builder) -> None:
    layer = Layer()
    layer.file(b".wh..wh..opq", b"")
    assert builder.tar(layer.tar()).look_below


def test_a_whiteout_never_hides_this_layers_own_entry(builder: Builder) -> None:
    for calls in ((file(b"x", b"new"), whiteout(b"x")), (whiteout(b"x"), file(b"x", b"new"))):
        root = builder.tar(tar(*calls))
        assert builder.content(at(root, b"x")) == b"new"


def test_a_whiteout_below_which_something_is_made_becomes_an_opaque_directory(builder: Builder) -> None:
    root = builder.tar(tar(whiteout(b"d"), file(b"d/x")))
    assert names(root) == {b"d/", b"d/x"}
    assert not at(root, b"d").look_below


def test_a_device_0_0_is_a_whiteout(builder: Builder) -> None:
    root = builder.tar(tar(lambda layer: layer.character_device(b"x", (0, 0))))
    assert at(root, b"x").kind is Kind.WHT


def test_metadata_of_aufs_is_left_out(builder: Builder) -> None:
    assert names(builder.tar(tar(file(b".wh..wh.plnk"), file(b".wh..wh.orph/x")))) <= {b".wh..wh.orph/", b".wh..wh.orph/x"}


@pytest.mark.parametrize("name", [b".wh.", b".wh..", b".wh...", b"d/.wh."])
def test_a_whiteout_of_nothing_is_refused(builder: Builder, name: bytes) -> None:
    with pytest.raises(InvalidError, match="whiteout of no name"):
        builder.tar(tar(file(name)))


# Hard links.


def test_hard_links_share_an_inode_whose_attributes_the_last_header_sets(builder: Builder) -> None:
    root = builder.tar(tar(file(b"a", b"x" * 3000, 0o644), hardlink(b"d/b", b"a", 0o600, owner=(1, 2), mtime=T * SECOND)))
    assert at(root, b"a") is at(root, b"d/b")
    assert described(at(root, b"a")) == (Kind.FILE, 0o600, 1, 2, T, 0)


def test_hard_links_to_symlinks_and_devices(builder: Builder) -> None:
    root = builder.tar(
        tar(symlink(b"s", b"t"), hardlink(b"s2", b"s", 0o600), lambda layer: layer.fifo(b"p"), hardlink(b"p2", b"p"))
    )
    assert at(root, b"s") is at(root, b"s2")
    assert at(root, b"s").permissions == 0o777
    assert at(root, b"p") is at(root, b"p2")


def test_capabilities_survive_a_hard_link_only_if_its_header_has_them(builder: Builder) -> None:
    """chown drops them, and containerd's unpacking calls it for every name."""
    with_cap = {"security.capability": b"cap"}
    root = builder.tar(
        tar(
            file(b"a", xattrs=with_cap),
            hardlink(b"b", b"a"),
            file(b"c", xattrs=with_cap),
            hardlink(b"d", b"c", xattrs=with_cap),
        )
    )
    assert at(root, b"a").xattrs == {}
    assert at(root, b"c").xattrs == {b"security.capability": b"cap"}


def test_a_target_that_was_replaced_keeps_its_other_names(builder: Builder) -> None:
    root = builder.tar(tar(file(b"a", b"old"), hardlink(b"b", b"a"), file(b"a", b"new")))
    assert (builder.content(at(root, b"a")), builder.content(at(root, b"b"))) == (b"new", b"old")


def test_a_hard_link_to_an_earlier_layer_copies_its_target_up(builder: Builder) -> None:
    data = bytes(range(256)) * 40
    below = tar(directory(b"d", 0o711), file(b"d/large", data, 0o640, owner=(1, 1)), file(b"small", b"small"))
    _, upper = builder.tars(below, tar(hardlink(b"link", b"d/large", 0o640, owner=(1, 1)), hardlink(b"s2", b"small")))
    assert names(upper) == {b"d/", b"d/large", b"link", b"small", b"s2"}
    assert at(upper, b"link") is at(upper, b"d/large")
    assert at(upper, b"d").permissions == 0o711
    assert (builder.content(at(upper, b"link")), builder.content(at(upper, b"s2"))) == (data, b"small")


def test_a_hard_link_sees_the_union_of_the_layers(builder: Builder) -> None:
    lowest = tar(file(b"d/old"), file(b"o/hidden"), file(b"gone"), symlink(b"s", b"d"))
    middle = tar(opaque(b"o"), whiteout(b"gone"), file(b"d/other"))
    trees = builder.tars(lowest, middle)
    upper = builder.tar(tar(hardlink(b"x", b"s/old")), trees[::-1])
    assert names(upper) == {b"d/", b"d/old", b"x"}
    for hidden in (b"o/hidden", b"gone", b"nowhere", b"d/old/x"):
        with pytest.raises(InvalidError, match="neither in this layer nor below"):
            builder.tar(tar(hardlink(b"x", hidden)), trees[::-1])


def test_a_directory_cannot_be_linked(builder: Builder) -> None:
    with pytest.raises(InvalidError, match="is a directory"):
        builder.tar(tar(directory(b"d"), hardlink(b"x", b"d")))


# Extended attributes and times.


def test_the_attributes_that_containerd_would_not_set_are_left_out(builder: Builder) -> None:
    attributes = {
        "user.a": b"1",
        "trusted.overlay.opaque": b"y",
        "trusted.b": b"2",
        "security.selinux": b"3",
        "unknown.c": b"4",
    }
    root = builder.tar(
        tar(file(b"f", xattrs=attributes), directory(b"d", xattrs=attributes), symlink(b"l", b"t", xattrs=attributes))
    )
    assert at(root, b"f").xattrs == {b"user.a": b"1", b"security.selinux": b"3"}
    assert at(root, b"d").xattrs == {b"user.a": b"1", b"security.selinux": b"3"}
    assert at(root, b"l").xattrs == {b"security.selinux": b"3"}


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (-5 * SECOND, (0, 0)),
        (0, (0, 0)),
        (1, (0, 1)),
        ((1 << 63) - 1, (9_223_372_036, 854_775_807)),
        (1 << 63, (0, 0)),
        (99_999_999_999 * SECOND, (0, 0)),
    ],
)
def test_times_out_of_containerds_range_are_the_epoch(builder: Builder, time: int, expected: tuple[int, int]) -> None:
    root = builder.tar(tar(file(b"f", mtime=time)))
    assert (at(root, b"f").mtime, at(root, b"f").mtime_nsec) == expected


# Limits.


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (file(b"n" * 256), "256 bytes; at most 255"),
        (file(b"n" * 256 + b"/x"), "256 bytes; at most 255"),
        (file(b"d/" * 2100 + b"x"), "at most 4096"),
        (symlink(b"l", b"t" * 4096), "target of 4096 bytes"),
        (symlink(b"l", b""), "target of 0 bytes"),
        (file(b"f", owner=(1 << 32, 0)), "which Linux does not have"),
        (lambda layer: layer.character_device(b"c", (4096, 0)), "which Linux does not have"),
        (lambda layer: layer.block_device(b"c", (0, 1 << 20)), "which Linux does not have"),
        (file(b"f", xattrs={"user." + "k" * 251: b""}), "beyond the kernel's limits"),
        (file(b"f", xattrs={"user.k": bytes(65537)}), "beyond the kernel's limits"),
        (lambda layer: layer.add(b"v", b"V", 0), "no layer may hold"),
    ],
)
def test_what_linux_cannot_hold_is_refused(builder: Builder, call: Callable[[Layer], None], says: str) -> None:
    with pytest.raises(InvalidError, match=says):
        builder.tar(tar(call))


def test_a_name_of_255_bytes_and_its_whiteout_fit(builder: Builder) -> None:
    assert names(builder.tar(tar(file(b"n" * 255), whiteout(b"m" * 255)))) == {b"n" * 255, b"m" * 255 + b"!"}


def test_symlinks_cannot_make_a_path_of_any_depth(builder: Builder) -> None:
    deep = b"/".join([b"d" * 200] * 19)
    layer = Layer()
    layer.directory(deep)
    layer.symlink(b"s", deep)
    layer.file(b"s/" + deep + b"/x", b"")
    with pytest.raises(InvalidError, match="path of more than 4096 bytes"):
        builder.tar(layer.tar())


def test_the_sum_of_everything_is_bounded(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_module, "ENTRIES_MAX", 3)
    monkeypatch.setattr(layer_module, "ATTRIBUTES_MAX", 1000)
    monkeypatch.setattr(layer_module, "FILE_BYTES_MAX", 2000)
    assert names(builder.tar(tar(*[file(b"%d" % n, bytes(600)) for n in range(3)]))) == {b"0", b"1", b"2"}
    with pytest.raises(InvalidError, match="more than 3 entries"):
        builder.tar(tar(*[file(b"%d" % n) for n in range(4)]))
    with pytest.raises(InvalidError, match="extended attributes"):
        builder.tar(tar(*[file(b"%d" % n, xattrs={"user.a": bytes(500)}) for n in range(2)]))
    with pytest.raises(InvalidError, match="brings the layer's files"):
        builder.tar(tar(*[file(b"%d" % n, bytes(1500)) for n in range(2)]))


def test_holes_are_bounded_over_all_files_of_a_layer(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes of a tar can claim any number of zeros, which are stored as such."""

    def archive(*members: str) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as made:
            for member in members:
                info = tarfile.TarInfo(member)
                info.size = 5
                info.pax_headers = {"GNU.sparse.map": "4000,5", "GNU.sparse.realsize": "4005"}
                made.addfile(info, io.BytesIO(b"bytes"))
        return stream.getvalue()

    monkeypatch.setattr(layer_module, "HOLE_BYTES_MAX", 8000)
    assert names(builder.tar(archive("a", "b"))) == {b"a", b"b"}
    with pytest.raises(InvalidError, match=r"tar member b'c' brings the holes of the layer's sparse files to more than"):
        builder.tar(archive("a", "b", "c"))
