"""The indexes of packs, kept on this node so that a start needs no registry.

A file is named by what it is: the pack, and the place of the index in it as the image's label gave it. A pack never changes,
so neither does such a file; and a hostile label that places an index elsewhere in a shared pack gets a file of its own
instead of spoiling everybody's. Its content is the index as stored, behind the sha256 of that, so that a file which rotted
is noticed and fetched again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Executor
from pathlib import Path

from snapshotter.chunkstore.base import BlobReader
from snapshotter.chunkstore.packmap import PackMap
from snapshotter.chunkstore.publish import publish
from snapshotter.errors import CorruptError, InvalidError, NotFoundError, PuzzlefsError, UnavailableError
from snapshotter.format.annotations import INDEX_SIZE_MAX, PACK_SIZE_MAX, PackPlace
from snapshotter.format.digest import sha256, to_text
from snapshotter.format.pack import PackIndex
from snapshotter.registry.failures import RegistryUnavailableError

log = logging.getLogger(__name__)

TRIM_AGE = 60.0
"""Seconds that an index is kept after it was last asked for, whether a layer names it or not: its pull may be under way."""


def fetch_index(place: PackPlace, readers: Sequence[BlobReader]) -> tuple[PackIndex, bytes]:
    """The index at `place` from the first of `readers` that has it, parsed and as stored.

    Raises:
        InvalidError: `place` lies beyond what any pack may hold.
        NotFoundError, CorruptError, RegistryUnavailableError: no reader has it; the message says what each answered.
    """
    if not (0 <= place.index_offset <= PACK_SIZE_MAX and 0 < place.index_length <= INDEX_SIZE_MAX):
        raise InvalidError(
            f"the index of pack {to_text(place.pack)} is said to lie at {place.index_offset}+{place.index_length},"
            f" beyond what any pack may hold"
        )
    failures: list[tuple[BlobReader, PuzzlefsError]] = []
    for reader in readers:
        try:
            stored = reader.read_range(place.pack, place.index_offset, place.index_length)
            if len(stored) != place.index_length:
                raise CorruptError(f"{len(stored)} bytes came instead of {place.index_length}")
            return PackIndex.parse(stored, place.index_offset), stored
        except PuzzlefsError as error:
            failures.append((reader, error))
    said = "; ".join(f"{reader.name}: {error}" for reader, error in failures) or "there is no source to ask"
    message = f"index of pack {to_text(place.pack)}: {said}"
    unavailable = [error for _, error in failures if isinstance(error, UnavailableError | InvalidError)]
    if unavailable:
        # Refused for good (InvalidError) is unavailable too, as in `sources.translate`, but not worth a retry.
        hopeful = [error for error in unavailable if isinstance(error, UnavailableError) and getattr(error, "retryable", True)]
        raise RegistryUnavailableError(message, retryable=bool(hopeful))
    if any(isinstance(error, CorruptError) for _, error in failures):
        raise CorruptError(message)
    raise NotFoundError(message)


class IndexStore:
    """Pack indexes under `root`/packs."""

    def __init__(self, root: Path) -> None:
        self._path = root / "packs"

    def file(self, place: PackPlace) -> Path:
        """Where the index at `place` is kept."""
        return self._path / f"{place.pack.hex()}.{place.index_offset}+{place.index_length}.index"

    def open(self, place: PackPlace, readers: Sequence[BlobReader]) -> PackIndex:
        """The index at `place`: from this node, else from the first of `readers` that has it, and then kept.

        Raises:
            As `fetch_index`.
        """
        index = self._load(place)
        if index is None:
            index, stored = fetch_index(place, readers)
            self._keep(place, stored)
        return index

    def has(self, place: PackPlace) -> bool:
        """Whether the index is on this node."""
        return self.file(place).exists()

    def local(self, place: PackPlace) -> PackIndex | None:
        """The index at `place` if it is on this node."""
        return self._load(place)

    def map(self, place: PackPlace, readers: Sequence[BlobReader]) -> PackMap:
        """The pack at `place`, its index to be opened when first needed."""
        return PackMap(place.pack, lambda: self.open(place, readers))

    def fetch(self, places: Sequence[PackPlace], readers: Sequence[BlobReader], pool: Executor) -> None:
        """Bring all of `places` to this node, several at a time.

        Raises:
            As `open`, for the first that fails, after all were tried.
        """
        missing = [place for place in places if not self._use(place)]
        tasks = [pool.submit(self.open, place, readers) for place in missing]
        errors = [error for task in tasks if (error := task.exception()) is not None]
        if errors:
            raise errors[0]

    def trim(self, needed: Collection[PackPlace]) -> None:
        """Delete the indexes of all packs but `needed` ones. One that was fetched or asked for just now stays: whoever did so
        may be about to need it."""
        kept = {self.file(place).name for place in needed}
        try:
            found = list(os.scandir(self._path))
        except FileNotFoundError:
            return
        for entry in found:
            with contextlib.suppress(OSError):
                if entry.name not in kept and time.time() - os.stat(entry.path).st_mtime > TRIM_AGE:
                    os.unlink(entry.path)

    def _use(self, place: PackPlace) -> bool:
        """Whether the index is on this node; then it counts as asked for now."""
        try:
            os.utime(self.file(place))
        except FileNotFoundError:
            return False
        except OSError:
            return self.has(place)
        return True

    def _load(self, place: PackPlace) -> PackIndex | None:
        path = self.file(place)
        try:
            with open(path, "rb") as file:
                content = file.read(32 + place.index_length + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("cannot read the pack index %s: %s; it is fetched again", path, error)
            return None
        checksum, stored = content[:32], content[32:]
        try:
            if len(stored) != place.index_length or sha256(stored) != checksum:
                raise CorruptError("does not match its checksum")
            return PackIndex.parse(stored, place.index_offset)
        except CorruptError as error:
            log.warning("the pack index %s is damaged (%s); it is fetched again", path, error)
            with contextlib.suppress(OSError):
                path.unlink()
            return None

    def _keep(self, place: PackPlace, stored: bytes) -> None:
        try:
            publish(self.file(place), sha256(stored) + stored)
        except OSError as error:
            log.warning("cannot keep the pack index %s: %s; it will be fetched again after a restart", self.file(place), error)
