"""Layers as containers in user namespaces see them: mounts of their directories, for each snapshot its own.

::

    <places>/<snapshot>/<n>     the n-th directory of the snapshot's chain, with other owners

They are not shared between snapshots: a mount takes some hundred bytes, and what belongs to one snapshot goes with it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from snapshotter.errors import NotFoundError, UnavailableError
from snapshotter.mount import idmapped, mounting
from snapshotter.snapshots.idmap import IdMap

_log = logging.getLogger(__name__)


class Shifted:
    """`idmap.ShiftedMounts` below the directory `places`, which is made where it is needed."""

    def __init__(self, places: Path) -> None:
        self._places = places
        self._lock = threading.Lock()

    def show(self, ident: int, directories: Sequence[Path], ids: IdMap) -> list[Path]:
        """See `ShiftedMounts`."""
        own = self._places / str(ident)
        points = [own / str(number) for number in range(len(directories))]
        with self._lock:
            missing = [(there, here) for there, here in zip(directories, points, strict=True) if not _same(there, here)]
            if missing:
                self._mount(missing, ids)
        return points

    def hide(self, ident: int) -> None:
        """See `ShiftedMounts`."""
        own = self._places / str(ident)
        with self._lock:
            try:
                for point in own.iterdir():
                    _take_off(point)
                    point.rmdir()
                own.rmdir()
            except FileNotFoundError:
                return
            except OSError as error:
                raise UnavailableError(f"{own} cannot be removed: {error}") from error

    def hide_all(self) -> None:
        """Show nothing to any snapshot any more. What cannot be hidden now is logged."""
        for ident in self.shown():
            try:
                self.hide(ident)
            except UnavailableError as error:
                _log.warning("%s", error)

    def shown(self) -> set[int]:
        """See `ShiftedMounts`."""
        try:
            names = os.listdir(self._places)
        except FileNotFoundError:
            return set()
        return {int(name) for name in names if name.isascii() and name.isdigit()}

    def _mount(self, missing: Sequence[tuple[Path, Path]], ids: IdMap) -> None:
        with idmapped.user_namespace(ids.uids, ids.gids) as namespace:
            for directory, point in missing:
                try:
                    for made in (self._places, point.parent, point):
                        made.mkdir(mode=0o700, exist_ok=True)
                except OSError as error:
                    raise UnavailableError(f"{point} cannot be made: {error}") from error
                _take_off(point)
                idmapped.show(directory, point, namespace)


def _same(there: Path, here: Path) -> bool:
    """Whether `here` shows the directory `there`, and not what was there before a layer was mounted anew, or nothing."""
    try:
        return os.path.samestat(os.stat(there), os.stat(here))
    except OSError:
        return False


def _take_off(point: Path) -> None:
    with contextlib.suppress(NotFoundError):
        while True:
            mounting.unmount(point)
