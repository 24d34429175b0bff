"""The metadata of lazy layers on this node: brought here only when it is what its digests say, and looked at again later.

::

    <root>/<diff ID, hex>/metadata    the uncompressed message
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from snapshotter.build.readmessage import ReadMessage, hold, pieces
from snapshotter.chunkstore.directory import Sealing
from snapshotter.chunkstore.publish import publish_parts
from snapshotter.errors import CorruptError, InvalidError, NotFoundError, PuzzlefsError, UnavailableError
from snapshotter.format.annotations import MetadataLayer
from snapshotter.format.compression import decompress_parts
from snapshotter.format.digest import Digest, to_text
from snapshotter.format.rootfs import Rootfs
from snapshotter.registry.base import BlobSource

STORED_MAX = 64 << 20
"""Largest stored metadata blob, in bytes."""
MESSAGE_MAX = 256 << 20
"""Largest metadata message, in bytes: about 1.6 million inodes."""

_log = logging.getLogger(__name__)


class MetadataFiles:
    """The metadata below `root`. `sealing` has the kernel's fs-verity check it."""

    def __init__(self, root: Path, sealing: Sealing | None = None) -> None:
        self._root = root
        self._sealing = sealing

    def path(self, diff_id: Digest) -> Path:
        """The file that has a layer's message, if it is on this node."""
        return self._root / diff_id.hex() / "metadata"

    @contextlib.contextmanager
    def opened(self, diff_id: Digest) -> Iterator[Rootfs]:
        """A layer's metadata, for as long as the block lasts.

        Raises:
            NotFoundError: it is not on this node.
            CorruptError: it is no layer's.
        """
        try:
            rootfs = Rootfs.of_file(self.path(diff_id))
        except FileNotFoundError:
            raise NotFoundError(f"layer {to_text(diff_id)} is not on this node") from None
        try:
            yield rootfs
        finally:
            rootfs.close()

    def is_intact(self, layer: MetadataLayer) -> bool:
        """Whether the layer's metadata is here, as it was published; what is damaged is removed.

        A sealed file is measured against the label and read, which is when the kernel checks it; any other one is hashed. So
        is a sealed one that the label does not fit, since the diff ID is what counts and a label may lie.
        """
        path = self.path(layer.diff_id)
        try:
            with path.open("rb") as file:
                measured = None if self._sealing is None else self._sealing.measure(file.fileno())
                is_intact = measured == layer.verity
                if is_intact:
                    for _ in pieces(file):
                        pass
                elif hashlib.file_digest(file, "sha256").digest() == layer.diff_id:
                    is_intact = True
            if is_intact:
                return True
            why = "does not match the layer's diff ID"
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            why = f"cannot be read, or fails fs-verity ({error.strerror})"
        _log.error("metadata of layer %s: %s %s; removed", to_text(layer.diff_id), path, why)
        path.unlink(missing_ok=True)
        return False

    def publish(self, layer: MetadataLayer, message: ReadMessage) -> None:
        """Keep what `fetch` gave for `layer`.

        Raises:
            OSError: it cannot be written.
        """
        publish_parts(self.path(layer.diff_id), message.parts(), None if self._sealing is None else self._sealing.enable)


def fetch(layer: MetadataLayer, stores: Sequence[BlobSource], temporary: Path | None = None) -> ReadMessage:
    """The layer's message from the first of `stores` that has it, checked against every digest that its labels name. A long one
    is kept in `temporary` meanwhile, or where the system keeps temporary files.

    Raises:
        PuzzlefsError: none has it: the most hopeful kind of error, with what each store said.
    """
    return _first(stores, lambda store: _message(store, layer, temporary))


def _first(stores: Sequence[BlobSource], read: Callable[[BlobSource], ReadMessage]) -> ReadMessage:
    failures: list[tuple[BlobSource, PuzzlefsError]] = []
    for store in stores:
        try:
            return read(store)
        except PuzzlefsError as error:
            _log.warning("%s: %s", store.name, error)
            failures.append((store, error))
    errors = [error for _, error in failures]
    if len(errors) == 1:
        raise errors[0]
    said = "; ".join(f"{store.name}: {error}" for store, error in failures)
    for category in (UnavailableError, CorruptError, InvalidError):
        if any(isinstance(error, category) for error in errors):
            raise category(said)
    raise NotFoundError(said)


def _message(store: BlobSource, layer: MetadataLayer, temporary: Path | None) -> ReadMessage:
    message = hold(decompress_parts(io.BytesIO(store.read_blob(layer.metadata, STORED_MAX)), MESSAGE_MAX), temporary)
    if message.digest() != layer.diff_id:
        raise CorruptError(
            f"metadata {to_text(layer.metadata)} of {store.name} is not that of diff ID {to_text(layer.diff_id)}"
        )
    if message.verity() != layer.verity:
        raise CorruptError(
            f"metadata {to_text(layer.metadata)} of {store.name} has another fs-verity digest than its label says"
        )
    Rootfs.open(message.data).close()
    return message
