"""From a chain of snapshots to the mounts that show it. Pure: paths and links in, mounts out.

The rules are those of containerd's overlayfs snapshotter, so that a container sees the same whichever of the two it runs
on: nothing below and it is a bind mount, one below and nothing on top a read-only bind mount, else overlayfs with the
topmost lower directory first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from snapshotter.format.digest import Digest
from snapshotter.snapshots.model import Kind, Layer, Link, Mount
from snapshotter.snapshots.paths import Paths

_XINO = "xino=on"


def lowers(links: Iterable[Link], paths: Paths, mountpoint: Callable[[Digest], Path]) -> list[Path]:
    """The lower directories that a chain of committed snapshots (topmost first) needs, topmost first.

    Packs add nothing. overlayfs refuses the same directory twice ("conflicting lowerdir path"), which a layer that occurs
    twice in an image would be; the lower occurrence adds nothing to the upper one, so only that is kept.
    """
    found: dict[Path, None] = {}
    for link in links:
        match link.layer:
            case Layer.ORDINARY:
                found.setdefault(paths.upper(link.id))
            case Layer.METADATA:
                assert link.diff_id is not None  # noqa: S101 - a rule of the table
                found.setdefault(mountpoint(link.diff_id))
            case Layer.PACK:
                pass
    return list(found)


def derive(kind: Kind, ident: int, below: Sequence[Path], paths: Paths, extra: Sequence[str]) -> tuple[Mount, ...]:
    """The mounts of the snapshot `ident`, active or a view, on the lower directories `below` (topmost first).

    `extra` are options for overlayfs mounts (see `options_for`).
    """
    if not below:
        return (_bind(paths.upper(ident), "ro" if kind is Kind.VIEW else "rw"),)
    if kind is Kind.VIEW and len(below) == 1:
        return (_bind(below[0], "ro"),)
    options = []
    if kind is Kind.ACTIVE:
        options += [f"workdir={paths.work(ident)}", f"upperdir={paths.upper(ident)}"]
    options.append("lowerdir=" + ":".join(map(str, below)))
    return (Mount("overlay", "overlay", (*options, *extra)),)


def options_for(below: Sequence[Path], paths: Paths, possible: Sequence[str]) -> list[str]:
    """Of the options that this kernel has (`overlay_options`), those for an overlay over the layers' directories `below`."""
    if all(path.is_relative_to(paths.snapshots) for path in below):
        return [
            option for option in possible if option != _XINO
        ]  # one file system: the kernel would call it useless, each time
    return list(possible)


def upper_of(found: Sequence[Mount]) -> Path | None:
    """The directory that takes what is written through the mounts `found`; None where that is no plain directory.

    A client unpacks a layer into it: overlayfs' upper directory, or a directory itself, bound with nothing below.
    """
    if len(found) != 1 or "ro" in found[0].options:
        return None
    if found[0].type == "bind":
        return Path(found[0].source)
    if found[0].type == "overlay":
        uppers = [option.removeprefix("upperdir=") for option in found[0].options if option.startswith("upperdir=")]
        return Path(uppers[0]) if len(uppers) == 1 else None
    return None


def overlay_options(*, userxattr: bool, module: Path = Path("/sys/module/overlay/parameters")) -> tuple[str, ...]:
    """The options that this kernel's overlayfs should get; `userxattr`: in a user namespace.

    An index of hard links would tie an upper directory to one stack of lowers, and fail the mount with ESTALE on another.
    Lazy layers are file systems of their own; ``xino`` gives their files one device and inode numbers that readdir and stat
    agree on, as layers on one file system have them (docs/decisions/inode-numbers.md). In a user namespace, layers have their
    marks in other attributes (`userns.overlay_prefix`).
    """
    options = (("index", "index=off"), ("xino_auto", _XINO))
    found = tuple(option for parameter, option in options if (module / parameter).exists())
    return (*found, "userxattr") if userxattr else found


def _bind(source: Path, access: str) -> Mount:
    return Mount("bind", str(source), (access, "rbind"))
