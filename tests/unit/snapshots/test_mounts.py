"""Which mounts show a chain of snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from snapshotter.format.digest import Digest, sha256
from snapshotter.snapshots import mounts
from snapshotter.snapshots.model import Kind, Layer, Link, Mount
from snapshotter.snapshots.paths import Paths

PATHS = Paths(Path("/r"))
A, B = sha256(b"a"), sha256(b"b")


def mountpoint(diff_id: Digest) -> Path:
    return Path("/r/l") / {A: "a", B: "b"}[diff_id]


def lowers(*links: Link) -> list[str]:
    return [str(path) for path in mounts.lowers(links, PATHS, mountpoint)]


def test_each_kind_of_layer_adds_what_it_has_topmost_first() -> None:
    chain = (Link(4, Layer.ORDINARY, None), Link(3, Layer.PACK, A), Link(2, Layer.METADATA, B), Link(1, Layer.METADATA, A))
    assert lowers(*chain) == ["/r/s/4/fs", "/r/l/b", "/r/l/a"]


def test_a_layer_that_occurs_twice_is_shown_once_where_it_is_topmost() -> None:
    chain = (Link(3, Layer.METADATA, A), Link(2, Layer.METADATA, B), Link(1, Layer.METADATA, A))
    assert lowers(*chain) == ["/r/l/a", "/r/l/b"]


def test_packs_alone_are_nothing() -> None:
    assert lowers(Link(1, Layer.PACK, A)) == []


def derive(kind: Kind, *below: str) -> Mount:
    (mount,) = mounts.derive(kind, 7, [Path(path) for path in below], PATHS, ("index=off",))
    return mount


def test_nothing_below_is_a_bind_mount() -> None:
    assert derive(Kind.ACTIVE) == Mount("bind", "/r/s/7/fs", ("rw", "rbind"))
    assert derive(Kind.VIEW) == Mount("bind", "/r/s/7/fs", ("ro", "rbind"))


def test_a_view_of_one_is_a_read_only_bind_mount() -> None:
    assert derive(Kind.VIEW, "/r/l/a") == Mount("bind", "/r/l/a", ("ro", "rbind"))


def test_a_view_of_several_has_no_upper_directory() -> None:
    assert derive(Kind.VIEW, "/r/l/b", "/r/l/a") == Mount("overlay", "overlay", ("lowerdir=/r/l/b:/r/l/a", "index=off"))


def test_an_active_one_has() -> None:
    assert derive(Kind.ACTIVE, "/r/l/a") == Mount(
        "overlay", "overlay", ("workdir=/r/s/7/work", "upperdir=/r/s/7/fs", "lowerdir=/r/l/a", "index=off")
    )


def test_128_layers_fit_a_page_below_a_short_root() -> None:
    chain = [Link(10_000 + n, Layer.ORDINARY, None) for n in range(128)]
    (mount,) = mounts.derive(Kind.ACTIVE, 20_000, mounts.lowers(chain, PATHS, mountpoint), PATHS, ("index=off",))
    assert len(",".join(mount.options)) < 4096


def test_index_is_turned_off_where_the_kernel_has_it(tmp_path: Path) -> None:
    assert mounts.overlay_options(userxattr=False, module=tmp_path) == ()
    (tmp_path / "index").write_text("N")
    assert mounts.overlay_options(userxattr=False, module=tmp_path) == ("index=off",)


def test_in_a_user_namespace_overlays_take_user_attributes(tmp_path: Path) -> None:
    """Whatever else the kernel has."""
    assert mounts.overlay_options(userxattr=True, module=tmp_path) == ("userxattr",)
    (tmp_path / "index").write_text("N")
    assert mounts.overlay_options(userxattr=True, module=tmp_path) == ("index=off", "userxattr")


def test_inode_numbers_agree_on_stacks_of_several_file_systems(tmp_path: Path) -> None:
    (tmp_path / "xino_auto").write_text("N")
    options = mounts.overlay_options(userxattr=False, module=tmp_path)
    assert options == ("xino=on",)

    def stacked(*below: Path) -> Sequence[str]:
        (mount,) = mounts.derive(Kind.ACTIVE, 7, below, PATHS, mounts.options_for(below, PATHS, options))
        return mount.options[3:]

    assert stacked(mountpoint(A)) == stacked(PATHS.upper(3), mountpoint(A)) == ("xino=on",)
    assert stacked(PATHS.upper(3), PATHS.upper(2)) == (), "one file system: the kernel would say that it is useless"
