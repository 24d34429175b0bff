"""Where lazy layers are mounted: directories that are named by numbers, short and never given out twice.

::

    <layers>/<diff ID, hex>/number    names the layer's mountpoint
    <root>/<number>                   the mountpoint
    <root>/<number>.<copy>            further ones of the same layer

What is mounted on them is not this module's business.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from snapshotter.chunkstore.publish import publish
from snapshotter.errors import NotFoundError, UnavailableError
from snapshotter.format.digest import Digest, to_text


class Mountpoints:
    """The mountpoints below `root` of the layers whose directories are below `layers`; both are there.

    Safe for use by many threads, as long as one at a time is about the same layer.
    """

    def __init__(self, layers: Path, root: Path) -> None:
        self._layers = layers
        self._root = root
        self._guard = threading.Lock()
        self._numbers = itertools.count(1 + max(self._used(), default=0))

    def of(self, diff_id: Digest, copy: int = 0) -> Path:
        """The layer's mountpoint, or that of a further mount of it.

        Raises:
            NotFoundError: it has none.
        """
        try:
            number = int(self._file(diff_id).read_text())
        except (FileNotFoundError, ValueError):
            raise NotFoundError(f"layer {to_text(diff_id)} is not on this node") from None
        return self._root / (f"{number}.{copy}" if copy else str(number))

    def make(self, diff_id: Digest, copy: int = 0) -> Path:
        """The same, made if it is not there; the layer is given a number if it has none.

        Raises:
            OSError: it cannot be made.
        """
        try:
            mountpoint = self.of(diff_id, copy)
        except NotFoundError:
            with self._guard:
                number = next(self._numbers)
            publish(self._file(diff_id), str(number).encode())
            mountpoint = self.of(diff_id, copy)
        with contextlib.suppress(FileExistsError):
            mountpoint.mkdir(mode=0o700)
        return mountpoint

    def all_of(self, diff_id: Digest) -> Sequence[Path]:
        """Every mountpoint that there is of a layer, the first one last; the first one also where it was not made."""
        try:
            first = self.of(diff_id)
        except NotFoundError:
            return []
        return [*self._root.glob(f"{first.name}.*"), first]

    def lost(self) -> Sequence[Path]:
        """Mountpoints of layers whose directory is gone: nobody could find them again."""
        named = set(self._recorded())
        return [path for path in self._root.iterdir() if (number := _number(path)) is not None and number not in named]

    def _file(self, diff_id: Digest) -> Path:
        return self._layers / diff_id.hex() / "number"

    def _recorded(self) -> Iterator[int]:
        for path in self._layers.glob("*/number"):
            with contextlib.suppress(OSError, ValueError):
                yield int(path.read_text())

    def _used(self) -> Iterator[int]:
        yield from (number for path in self._root.iterdir() if (number := _number(path)) is not None)
        yield from self._recorded()


def remove(mountpoint: Path) -> None:
    """Remove a mountpoint on which nothing is mounted any more, if it is there.

    Raises:
        UnavailableError: it cannot be removed.
    """
    try:
        mountpoint.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UnavailableError(f"mountpoint {mountpoint} cannot be removed: {error.strerror}") from error


def _number(mountpoint: Path) -> int | None:
    number = mountpoint.name.partition(".")[0]
    return int(number) if number.isdigit() else None
