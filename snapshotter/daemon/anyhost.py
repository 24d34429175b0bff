"""An image at whichever host has it: mirrors first, then its registry, each failure asked again as far as that helps.

What `pull` reads through. containerd's own client goes through ``hosts.toml`` in the same way: the next host is asked for
whatever one does not give, be it gone, refusing or without the image.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import BinaryIO, TypeVar

from snapshotter.chunkstore.retry import Patience, RetryPolicy
from snapshotter.errors import CorruptError, InvalidError, NotFoundError, PuzzlefsError, UnavailableError
from snapshotter.format.digest import to_text
from snapshotter.registry.base import Descriptor
from snapshotter.registry.client import RegistryStore
from snapshotter.registry.failures import RegistryUnavailableError
from snapshotter.registry.reference import Reference, is_tag
from snapshotter.registry.registries import Registries
from snapshotter.registry.verified import verified

PATIENCE = Patience(RetryPolicy(attempts=4, first_pause=0.5, longest_retry_after=20.0, deadline=120.0))
"""A pull is somebody's command: it may wait for a registry that is restarted or asks for fewer requests, not for ever."""

RESUMED_MAX = 20
"""How often a layer whose connection breaks is gone on with."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


class AnyHost:
    """The repository of `reference` at every host that may be asked for it (`Registries.readers`)."""

    def __init__(self, registries: Registries, reference: Reference, patience: Patience = PATIENCE) -> None:
        """Connects to nothing yet."""
        self._registries = registries
        self._reference = reference
        self._patience = patience

    def manifest(self, reference: str) -> tuple[Descriptor, bytes]:
        """The manifest or index that `reference`, a tag or a digest, names, checked against its digest.

        Raises:
            NotFoundError, CorruptError, UnavailableError, InvalidError: as `registry.base.ImageStore`, with what every host
                said.
        """
        stores = self._registries.readers(self._reference, resolve=is_tag(reference))
        what = f"manifest {reference!r} of {self._reference.name}"
        return self._patience.run(lambda: _first(stores, what, lambda store: store.manifest(reference)))

    def read_blob(self, blob: Descriptor) -> bytes:
        """A whole blob that is small enough to be in memory, checked against its digest.

        Raises:
            As `manifest`.
        """
        stores = self._registries.readers(self._reference)
        what = f"blob {to_text(blob.digest)} of {self._reference.name}"
        return self._patience.run(lambda: _first(stores, what, lambda store: store.read_blob(blob.digest, blob.size)))

    def open_blob(self, blob: Descriptor) -> BinaryIO:
        """The whole blob as a stream, which goes on at the next host where one breaks off. Its last bytes come only if size and
        digest are right.

        Raises:
            As `manifest`; the stream too.
        """
        source = _Blob(self._registries.readers(self._reference), blob, self._patience)
        return verified(source, blob, self._reference.name, source.close)


class _Blob:
    """The bytes of a blob, one after another, from whichever host gives the next ones."""

    def __init__(self, stores: Sequence[RegistryStore], blob: Descriptor, patience: Patience) -> None:
        self._stores = stores
        self._blob = blob
        # An attempt ends with its first bytes; a large layer may take as long as it takes.
        self._patience = replace(patience, policy=replace(patience.policy, deadline=float("inf")))
        self._what = f"blob {to_text(blob.digest)}"
        self._at = 0
        self._resumed = -1
        self._blocks: Iterator[tuple[int, bytes]] = iter(())
        self._buffer = io.BytesIO()

    def readinto(self, buffer: memoryview, /) -> int:
        """See `verified.Source`."""
        count = self._buffer.readinto(buffer)
        if not count and self._at < self._blob.size:
            self._buffer = io.BytesIO(self._next())
            count = self._buffer.readinto(buffer)
        return count

    def close(self) -> None:
        """Give the connection back."""
        self._leave()

    def _next(self) -> bytes:
        """The next block, of the stream that is open or of another one."""
        try:
            for _, block in self._blocks:
                self._at += len(block)
                return block
        except UnavailableError as error:
            _log.info("%s: %s; it is gone on with", self._what, error)
        self._leave()
        self._resumed += 1
        if self._resumed > RESUMED_MAX:
            raise RegistryUnavailableError(f"{self._what}: connections have broken {RESUMED_MAX} times before its end")
        self._blocks, block = self._patience.run(lambda: _first(self._stores, self._what, self._begin))
        self._at += len(block)
        return block

    def _begin(self, store: RegistryStore) -> tuple[Iterator[tuple[int, bytes]], bytes]:
        """What comes from `store` of what is left, and its first block."""
        blocks = store.read_ranges(self._blob.digest, [(self._at, self._blob.size - self._at)])
        for _, block in blocks:
            return blocks, block
        raise RegistryUnavailableError(f"{self._what}: {store.name} sends nothing of it")

    def _leave(self) -> None:
        close = getattr(self._blocks, "close", None)
        if close is not None:
            close()


def _first(stores: Sequence[RegistryStore], what: str, ask: Callable[[RegistryStore], T]) -> T:
    """What the first of `stores` answers that does not fail.

    Raises:
        PuzzlefsError: all did. Of the category that gives most hope: unavailable if any of them may have it later (and worth a
            retry if one says so), else damaged, else refused, else not there.
    """
    errors: list[tuple[str, PuzzlefsError]] = []
    for store in stores:
        try:
            return ask(store)
        except PuzzlefsError as error:
            errors.append((store.name, error))
            if len(errors) < len(stores):
                _log.info("%s: the next host is asked: %s", what, error)
    if len(errors) == 1:
        raise errors[0][1]
    said = "; ".join(f"{name}: {error}" for name, error in errors)
    message = f"{what} cannot be had from any of {len(errors)} hosts: {said}"
    failures = [error for _, error in errors]
    unavailable = [error for error in failures if isinstance(error, UnavailableError)]
    if unavailable:
        retryable = [error for error in unavailable if getattr(error, "retryable", True)]
        waits = [getattr(error, "retry_after", None) for error in retryable]
        shortest = None if None in waits else min((wait for wait in waits if wait is not None), default=None)
        raise RegistryUnavailableError(message, retryable=bool(retryable), retry_after=shortest)
    category = next(kind for kind in (CorruptError, InvalidError, NotFoundError, PuzzlefsError) if _any(kind, failures))
    raise category(message)


def _any(kind: type[PuzzlefsError], errors: Sequence[PuzzlefsError]) -> bool:
    return any(isinstance(error, kind) for error in errors)
