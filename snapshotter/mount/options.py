"""The ``-o`` list of ``puzzlefs mount``, as upstream's program takes it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from snapshotter.errors import InvalidError

_FLAGS = frozenset(
    {
        "allow_other", "allow_root", "auto_unmount", "default_permissions", "dev", "nodev", "suid", "nosuid", "exec", "noexec",
        "atime", "noatime", "async", "sync", "dirsync", "ro",
    }
)  # fmt: skip
_VALUED = frozenset({"fsname", "subtype"})
_VALUE = re.compile(r"[^,\\\0\n]{1,255}\Z")

DEFAULTS = ("ro", "default_permissions", "subtype=puzzlefs")


def parse_options(texts: Iterable[str], fsname: str) -> set[str]:
    """The options to mount with: those of `texts` (each a comma-separated list, as after ``-o``) over our defaults.

    `fsname` is what the mount table shows as source unless the list says otherwise; characters that the list cannot hold
    are replaced in it.

    Raises:
        InvalidError: an option is unknown, or asks for something that this file system cannot do.
    """
    chosen: dict[str, str] = {}
    for option in (*DEFAULTS, "fsname=" + re.sub(r"[,\\\0\n]", "_", fsname)[:255], *_split(texts)):
        key, _, value = option.partition("=")
        if option in _FLAGS or (key in _VALUED and _VALUE.match(value)):
            chosen[key] = option
        elif option == "rw":
            raise InvalidError("mount option rw: PuzzleFS is read-only; leave it out, or use --writable for an overlay")
        else:
            raise InvalidError(f"mount option {option[:100]!r} is unknown; known are {', '.join(sorted(_FLAGS | _VALUED))}")
    if {"allow_other", "allow_root"} <= chosen.keys():
        raise InvalidError("mount options allow_other and allow_root exclude each other")
    return set(chosen.values())


def _split(texts: Iterable[str]) -> Iterable[str]:
    return (option for text in texts for option in text.split(",") if option)
