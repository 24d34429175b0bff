"""What is said about a kernel."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snapshotter.doctor.finding import Level, worst
from snapshotter.doctor.kernel import PASSTHROUGH, KernelFacts, check_kernel, version
from snapshotter.mount.wire import NEEDED, InitFlag, InitIn

NEW = KernelFacts(
    release="6.18.5",
    fuse_device="",
    init=InitIn(7, 45, 131072, NEEDED | InitFlag.HAS_RESEND | PASSTHROUGH),
    overlay=True,
    redirect_dir=True,
    verity=True,
    cache_fs="ext4",
)


def levels(facts: KernelFacts, *, require_verity: bool = False) -> dict[str, Level]:
    return {found.check: found.level for found in check_kernel(facts, require_verity=require_verity)}


def test_a_new_kernel_has_everything() -> None:
    assert worst(check_kernel(NEW, require_verity=True)) is Level.OK


@pytest.mark.parametrize(
    ("facts", "check", "level"),
    [
        (replace(NEW, fuse_device="No such device"), "kernel.fuse-device", Level.FAIL),
        (replace(NEW, init=InitIn(7, 30, 0, int(NEEDED))), "kernel.fuse-protocol", Level.FAIL),
        (replace(NEW, init=InitIn(7, 31, 0, 0)), "kernel.fuse-protocol", Level.FAIL),
        (replace(NEW, init=InitIn(7, 38, 0, int(NEEDED))), "kernel.fuse-resend", Level.OK),
        (replace(NEW, init=None, release="5.3.0"), "kernel.fuse-protocol", Level.FAIL),
        (replace(NEW, init=None, release="6.1.0-21-amd64"), "kernel.fuse-protocol", Level.OK),
        (replace(NEW, init=None, release="6.1.0-21-amd64"), "kernel.fuse-resend", Level.OK),
        (replace(NEW, init=None, release="6.9.1"), "kernel.fuse-resend", Level.OK),
        (replace(NEW, init=None, release="home made"), "kernel.fuse-protocol", Level.WARN),
        (replace(NEW, overlay=False), "kernel.overlayfs", Level.FAIL),
        (replace(NEW, redirect_dir=False), "kernel.overlayfs-redirect-dir", Level.OK),
        (replace(NEW, redirect_dir=None), "kernel.overlayfs-redirect-dir", Level.OK),
        (replace(NEW, verity=False), "kernel.fs-verity", Level.OK),
        (replace(NEW, verity=None), "kernel.fs-verity", Level.OK),
    ],
)
def test_what_a_kernel_lacks(facts: KernelFacts, check: str, level: Level) -> None:
    assert levels(facts)[check] is level


@pytest.mark.parametrize("verity", [False, None])
def test_fs_verity_that_is_required_and_missing(verity: bool | None) -> None:
    assert levels(replace(NEW, verity=verity), require_verity=True)["kernel.fs-verity"] is Level.FAIL


def test_advice_follows_everything_that_is_wrong() -> None:
    nothing = KernelFacts("4.19.0", "No such device", None, overlay=False, redirect_dir=False, verity=False, cache_fs="xfs")
    for found in check_kernel(nothing, require_verity=True):
        assert found.advice or found.level is Level.OK, found


@pytest.mark.parametrize(("release", "numbers"), [("6.1.0-21-amd64", (6, 1)), ("5.10", (5, 10)), ("none", None), ("", None)])
def test_version(release: str, numbers: tuple[int, int] | None) -> None:
    assert version(release) == numbers


def test_other_owners_are_looked_for_where_they_are_wanted() -> None:
    old = replace(NEW, init=None, release="6.9.1")
    assert "kernel.fuse-idmap" not in levels(old)
    found = {each.check: each.level for each in check_kernel(old, remap_ids=True)}
    assert found["kernel.fuse-idmap"] is Level.FAIL
    recent = check_kernel(replace(old, release="6.12.0"), remap_ids=True)
    assert {each.check: each.level for each in recent}["kernel.fuse-idmap"] is Level.OK
