"""A writable view of a mounted image, as upstream's ``mount -w`` lays it out: an overlay on the mountpoint itself.

::

    DIR/ro       the image
    DIR/upper    what was changed (or another directory, which the caller names)
    DIR/work     overlayfs's own

All three are hidden while the overlay is mounted, and stay when it is not, so that the next mount goes on with the changes.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from snapshotter.errors import FailedPreconditionError, InvalidError
from snapshotter.mount import mounting

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)


def lower(where: Path) -> Path:
    """Where the image of the view `where` is mounted."""
    return where / "ro"


def prepare(where: Path, upper: Path | None) -> None:
    """Make the directories of a view on the directory `where`, with the changes in `upper` if that is given.

    Raises:
        InvalidError: `upper` is no directory, or lies in the view itself.
        FailedPreconditionError: they cannot be made, or the view is there already.
    """
    if is_stacked(where):
        raise FailedPreconditionError(f"{where} is mounted already; puzzlefs umount undoes it")
    if upper is not None:
        if not upper.is_dir():
            raise InvalidError(f"{upper} is not a directory: name the directory that is to keep the changes")
        if upper.resolve().is_relative_to(lower(where).resolve()):
            raise InvalidError(f"{upper} lies in the mounted image, which cannot be written")
    try:
        for directory in (lower(where), _upper(where, upper), _work(where, upper)):
            directory.mkdir(exist_ok=True)
    except OSError as error:
        raise FailedPreconditionError(f"{error.filename}: {error.strerror}") from None


def stack(where: Path, upper: Path | None) -> None:
    """Mount the view; its image is mounted, and its directories are made.

    Raises:
        FailedPreconditionError: the kernel refuses it.
    """
    options = f"lowerdir=ro,upperdir={_escaped(_upper(where, upper))},workdir={_escaped(_work(where, upper))},index=off"
    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Relative, since a name in `lowerdir` may neither hold a colon nor be long.
        os.chdir(where)
        result = _libc.mount(b"puzzlefs", os.fsencode(where), b"overlay", 0, os.fsencode(options))
        number = ctypes.get_errno()
    finally:
        os.fchdir(before)
        os.close(before)
    if result != 0:
        raise FailedPreconditionError(
            f"mounting a writable view on {where}: {os.strerror(number)}: it takes root, and a file system for the changes that"
            " overlayfs accepts (not another overlay, for one); the kernel's log says more"
        )


def is_stacked(where: Path) -> bool:
    """Whether a view is mounted on `where`."""
    found = mounting.find(where)
    below = mounting.find(lower(where))
    return found is not None and found.fs_type == "overlay" and below is not None and below.fs_type == mounting.FS_TYPE


def unstack(where: Path) -> None:
    """Undo `stack`, and the mount of the image."""
    mounting.unmount(where)
    mounting.unmount(lower(where))


def _upper(where: Path, upper: Path | None) -> Path:
    return where / "upper" if upper is None else upper


def _work(where: Path, upper: Path | None) -> Path:
    """overlayfs wants it on the file system of the changes."""
    if upper is None or upper.stat().st_dev == where.stat().st_dev:
        return where / "work"
    return upper.parent / f".{upper.name}.work"


def _escaped(path: Path) -> str:
    return os.fspath(path.absolute()).replace("\\", "\\\\").replace(",", "\\,")
