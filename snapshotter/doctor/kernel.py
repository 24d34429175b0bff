"""What the kernel offers, against what the mounts need of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from snapshotter.doctor.finding import Finding, fail, ok, warn
from snapshotter.mount.wire import MAJOR, MINOR_MIN, NEEDED, InitFlag, InitIn

PASSTHROUGH = 1 << 37
"""``FUSE_PASSTHROUGH`` of INIT (linux/fuse.h)."""

_VERSION = re.compile(r"(\d+)\.(\d+)")
_OLDEST = (5, 4)
_RESEND_FROM = (6, 9)
"""Linux 6.9 brought both FUSE_NOTIFY_RESEND and FUSE passthrough."""


_IDMAP_FROM = (6, 12)


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """What was found out about the kernel.

    `release` as uname(2) says it. `fuse_device`: why /dev/fuse cannot be opened, empty if it can. `init`: what the kernel
    offered to a FUSE server, None where that was not tried. `overlay`: whether overlayfs is there. `redirect_dir`: the
    default of overlayfs' parameter, None where it cannot be read. `verity`: whether the file system of the cache can seal
    files, None where that is unknown; `cache_fs` is that file system's type.
    """

    release: str
    fuse_device: str
    init: InitIn | None
    overlay: bool
    redirect_dir: bool | None
    verity: bool | None
    cache_fs: str


def check_kernel(facts: KernelFacts, *, require_verity: bool = False, remap_ids: bool = False) -> list[Finding]:
    """One finding for each feature. `require_verity`: the configuration demands fs-verity; `remap_ids`: and layers with other
    owners."""
    return [
        _device(facts),
        _protocol(facts),
        _resend(facts),
        _passthrough(facts),
        _overlay(facts),
        _redirect_dir(facts),
        _verity(facts, require_verity),
        *([_idmap(facts)] if remap_ids else []),
    ]


def version(release: str) -> tuple[int, int] | None:
    """Major and minor number of a kernel release such as ``6.1.0-21-amd64``; None if it is none."""
    match = _VERSION.match(release)
    return None if match is None else (int(match[1]), int(match[2]))


def _device(facts: KernelFacts) -> Finding:
    if facts.fuse_device:
        advice = "modprobe fuse; in a container, allow the device and run it with CAP_SYS_ADMIN"
        return fail("kernel.fuse-device", f"/dev/fuse cannot be used: {facts.fuse_device}", advice)
    return ok("kernel.fuse-device", "/dev/fuse can be opened")


def _protocol(facts: KernelFacts) -> Finding:
    check, advice = "kernel.fuse-protocol", "use Linux 5.4 or newer"
    if facts.init is not None:
        told = f"FUSE {facts.init.major}.{facts.init.minor}"
        if (facts.init.major, facts.init.minor) < (MAJOR, MINOR_MIN) or NEEDED & ~facts.init.flags:
            return fail(check, f"this kernel speaks {told}; {MAJOR}.{MINOR_MIN} with zero-message opens is needed", advice)
        return ok(check, f"{told}, opens and directory opens need no message")
    numbers = version(facts.release)
    if numbers is None:
        return warn(check, f"the FUSE version of kernel {facts.release!r} is unknown", "run puzzlefs doctor as root to ask it")
    if numbers < _OLDEST:
        return fail(check, f"Linux {facts.release} speaks an older FUSE than {MAJOR}.{MINOR_MIN}", advice)
    return ok(check, f"Linux {facts.release} speaks FUSE {MAJOR}.{MINOR_MIN} or later (by its version; root can ask it)")


def _offers(facts: KernelFacts, flag: int, since: tuple[int, int] = _RESEND_FROM) -> bool:
    if facts.init is not None:
        return bool(facts.init.flags & flag)
    numbers = version(facts.release)
    return numbers is not None and numbers >= since


def _resend(facts: KernelFacts) -> Finding:
    check = "kernel.fuse-resend"
    if _offers(facts, InitFlag.HAS_RESEND):
        return ok(check, "reads under way are repeated when a mount worker is replaced")
    return ok(
        check, "this kernel repeats no requests (6.9 and newer do): mount workers remember themselves which are under way"
    )


def _idmap(facts: KernelFacts) -> Finding:
    check = "kernel.fuse-idmap"
    if _offers(facts, InitFlag.ALLOW_IDMAP, _IDMAP_FROM):
        return ok(check, "lazy layers can be shown to containers in user namespaces")
    text = (
        "this kernel cannot show lazy layers to containers in user namespaces, and the configuration has containerd.remap_ids"
    )
    return fail(check, text, "use Linux 6.12 or newer, or take remap_ids out, here and in containerd's capabilities")


def _passthrough(facts: KernelFacts) -> Finding:
    offered = "offered" if _offers(facts, PASSTHROUGH) else "not offered (Linux 6.9 and newer)"
    return ok("kernel.fuse-passthrough", f"FUSE passthrough is {offered}; nothing here depends on it")


def _overlay(facts: KernelFacts) -> Finding:
    if facts.overlay:
        return ok("kernel.overlayfs", "overlayfs is there")
    return fail("kernel.overlayfs", "this kernel has no overlayfs: no container can start", "modprobe overlay")


def _redirect_dir(facts: KernelFacts) -> Finding:
    check = "kernel.overlayfs-redirect-dir"
    if facts.redirect_dir is None:
        return ok(check, "whether overlayfs renames directories of lower layers (redirect_dir) is unknown")
    if facts.redirect_dir:
        return ok(check, "overlayfs renames directories of lower layers (redirect_dir is on)")
    text = "rename(2) of a directory of an image fails with EXDEV, as with containerd's overlayfs (redirect_dir is off)"
    return ok(check, text, "if programs in containers need it: echo Y > /sys/module/overlay/parameters/redirect_dir")


def _verity(facts: KernelFacts, required: bool) -> Finding:
    check = "kernel.fs-verity"
    if facts.verity is None:
        text, advice = f"whether {facts.cache_fs} seals cached chunks (fs-verity) is unknown", "run puzzlefs doctor as root"
        return fail(check, f"{text}, and the configuration requires it", advice) if required else ok(check, text)
    if facts.verity:
        return ok(check, f"the cache's {facts.cache_fs} can seal files with fs-verity")
    text = f"the cache's {facts.cache_fs} has no fs-verity"
    advice = "tune2fs -O verity DEVICE, while it is not mounted" if facts.cache_fs == "ext4" else ""
    if required:
        return fail(check, f"{text}, and the configuration requires it", advice or "put the root on ext4 with -O verity")
    return ok(check, f"{text}: digests are checked in user space instead", advice)
