"""Lazy layers as snapshots: from a Prepare that asks for one to its row, and back to nothing.

The order of events is what keeps a crash harmless. The hint is recorded first, then the layer is fetched and mounted, then
the snapshot is recorded; a hint without a snapshot is a layer that `LazyChains.collect` releases. All of it happens under
a lock for the layer, so that a layer that two clients ask for at once is fetched once, and none is released while somebody
is about to record a snapshot of it.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from snapshotter.errors import AlreadyExistsError, PuzzlefsError
from snapshotter.format.annotations import MetadataLayer, PackLayer, parse
from snapshotter.format.digest import Digest, chain_id, to_text
from snapshotter.snapshots import lazy
from snapshotter.snapshots.lazy import LazyLayers
from snapshotter.snapshots.metastore import MetaStore, Reader, Writer
from snapshotter.snapshots.model import REF_LABEL, Hint, Layer, Link, Row, Usage

_LOG = logging.getLogger(__name__)

LABELS_MAX = 1024
"""Labels beyond which a chain that is asked for again takes no new ones."""


class LazyChains:
    """The lazy layers of one `store`, mounted by `layers`."""

    def __init__(self, store: MetaStore, layers: LazyLayers) -> None:
        self._store = store
        self._layers = layers
        self._locks = KeyedLocks()
        self._lent: Counter[Digest] = Counter()  # changed under the layer's lock
        self._failed: dict[Digest, PuzzlefsError] = {}

    @property
    def failed(self) -> Mapping[Digest, PuzzlefsError]:
        """The recorded layers that are not mounted now, and why."""
        return dict(self._failed)

    def prepare(self, key: str, parent: str, labels: Mapping[str, str], layer: MetadataLayer | PackLayer) -> Row:
        """The committed snapshot of `layer` on `parent`, which is there afterwards, whoever asked for it first.

        Raises:
            AlreadyExistsError: `key` itself is a snapshot.
            NotFoundError, InvalidError: `parent` is none, or not committed; or the chain ID is not this layer's.
            FailedPreconditionError: the chain ID cannot be checked.
            UnavailableError, CorruptError, InvalidError: the layer cannot be had.
        """
        if isinstance(layer, PackLayer):
            with self._store.write() as tx:
                return self._record(tx, key, parent, labels, layer)
        with self._store.read() as rx:
            self._check(rx, key, parent, labels, layer)
        hint = Hint(layer.annotations(), lazy.image_of(labels, layer), lazy.namespace_of(key))
        with self._locks.hold(layer.diff_id):
            with self._store.read() as rx:
                found, _ = self._check(rx, key, parent, labels, layer)
                known = hint in rx.hints(layer.diff_id)
            if found is None or not known or layer.diff_id in self._failed:
                self._have(layer, hint, known=known)
            try:
                with self._store.write() as tx:
                    return self._record(tx, key, parent, labels, layer)
            except BaseException:
                self._drop_if_unused(layer.diff_id)
                raise

    def adopt(self, ident: int, layer: MetadataLayer | PackLayer) -> bool:
        """Make the active snapshot with the number `ident` the lazy layer `layer`, which it is still when it is committed.

        For a client that unpacks without labels (`differ`). False where the chain ID of the parent is unknown: nothing that
        stands on it can be told from another image's layer then.

        Raises:
            NotFoundError, FailedPreconditionError: as `metastore.Writer.mark`.
            UnavailableError, CorruptError, InvalidError: the layer cannot be had.
        """
        with self._store.read() as rx:
            row = rx.numbered(ident)
            above = None if row.parent_id is None else rx.numbered(row.parent_id)
        below = None if above is None else lazy.chain_of(above)
        if above is not None and below is None:
            return False
        diff_id = lazy.diff_id_of(layer)
        chain = chain_id(below, diff_id)
        if isinstance(layer, PackLayer):
            with self._store.write() as tx:
                tx.mark(ident, Layer.PACK, diff_id, chain)
            return True
        hint = Hint(layer.annotations(), lazy.image_of(row.info.labels, layer), lazy.namespace_of(row.info.name))
        with self._held(layer, hint), self._store.write() as tx:
            tx.mark(ident, Layer.METADATA, diff_id, chain)
        return True

    @contextmanager
    def lent(self, layer: MetadataLayer, namespace: str) -> Iterator[Path]:
        """Where `layer` is mounted while the block lasts, without any snapshot of it.

        Raises:
            UnavailableError, CorruptError, InvalidError: it cannot be had.
        """
        with self._held(layer, Hint(layer.annotations(), layer.source, namespace)):
            self._lent[layer.diff_id] += 1
            mountpoint = self._layers.mountpoint(layer.diff_id)
        try:
            yield mountpoint
        finally:
            with self._locks.hold(layer.diff_id):
                self._lent[layer.diff_id] -= 1
                self._drop_if_unused(layer.diff_id)

    @contextmanager
    def _held(self, layer: MetadataLayer, hint: Hint) -> Iterator[None]:
        """Under the layer's lock, with the layer mounted; if the block raises, nothing of it stays that nobody uses."""
        with self._locks.hold(layer.diff_id):
            with self._store.read() as rx:
                known = hint in rx.hints(layer.diff_id)
            self._have(layer, hint, known=known)
            try:
                yield
            except BaseException:
                self._drop_if_unused(layer.diff_id)
                raise

    def require(self, links: Iterable[Link]) -> None:
        """Have every layer of a chain mounted: those that a start could not mount are tried once more.

        Raises:
            UnavailableError, CorruptError, InvalidError: one still cannot be had.
        """
        for link in links:
            if link.diff_id is not None and link.diff_id in self._failed:
                with self._locks.hold(link.diff_id):
                    if link.diff_id in self._failed:
                        self._retry(link.diff_id)

    def restore(self) -> Mapping[Digest, PuzzlefsError]:
        """Mount all recorded layers again, from this machine alone; those that could not be are answered, and isolated."""
        known: list[tuple[MetadataLayer, str | None]] = []
        with self._store.read() as rx:
            for diff_id in sorted(rx.diff_ids()):
                known += [(_layer(hint), hint.image) for hint in rx.hints(diff_id)]
        self._failed = dict(self._layers.restore(known))
        for diff_id, error in self._failed.items():
            _LOG.error("layer %s could not be mounted, containers that need it will not start: %s", to_text(diff_id), error)
        return dict(self._failed)

    def collect(self) -> None:
        """Release the layers that no snapshot uses. One that cannot be released now stays for the next time."""
        with self._store.read() as rx:
            orphans = rx.orphans()
        for diff_id in orphans:
            # Whoever holds it is about to use it, maybe waiting for the network; a clean-up need not.
            with self._locks.hold(diff_id, wait=False) as held:
                if held:
                    self._drop_if_unused(diff_id)
        with self._store.read() as rx:
            known = [_described(annotations) for annotations in rx.annotations()]
        self._layers.trim(known)

    def usage(self, chain: Sequence[Link]) -> Usage:
        """What the topmost link of a chain, a lazy layer, adds on this machine to what those below it take.

        So a chunk that several layers of an image share counts once for the image. A pack is nothing but its chunks, which
        the metadata layers count.
        """
        diff_ids = [link.diff_id for link in chain if link.layer is Layer.METADATA and link.diff_id is not None]
        return self._layers.usage(diff_ids[0], diff_ids[1:]) if chain[0].layer is Layer.METADATA else Usage()

    def _check(
        self, rx: Reader, key: str, parent: str, labels: Mapping[str, str], layer: MetadataLayer | PackLayer
    ) -> tuple[Row | None, Row | None]:
        """The snapshot if it is there already, and its parent; after all checks that need no network."""
        if rx.find(key) is not None:
            raise AlreadyExistsError(f"snapshot {key!r} already exists")
        above = rx.parent(parent)
        chain = lazy.checked_chain(layer, labels[REF_LABEL], above)
        return rx.lazy(chain, None if above is None else above.id), above

    def _record(self, tx: Writer, key: str, parent: str, labels: Mapping[str, str], layer: MetadataLayer | PackLayer) -> Row:
        found, above = self._check(tx, key, parent, labels, layer)
        if found is not None:
            merged = {**found.info.labels, **labels}
            if merged == found.info.labels or len(merged) > LABELS_MAX:
                return found
            return tx.set_labels(found.info.name, merged)
        return tx.insert_lazy(
            lazy.name_prefix(key),
            None if above is None else above.id,
            Layer.METADATA if isinstance(layer, MetadataLayer) else Layer.PACK,
            lazy.diff_id_of(layer),
            lazy.checked_chain(layer, labels[REF_LABEL], above),
            labels,
        )

    def _have(self, layer: MetadataLayer, hint: Hint, *, known: bool) -> None:
        with self._store.write() as tx:
            tx.remember(layer.diff_id, hint)
        try:
            self._layers.ensure(layer, hint.image, hint.namespace)
        except BaseException:
            if not known:
                with self._store.write() as tx:
                    tx.forget(layer.diff_id, hint)
            self._drop_if_unused(layer.diff_id)
            raise
        self._failed.pop(layer.diff_id, None)

    def _retry(self, diff_id: Digest) -> None:
        with self._store.read() as rx:
            hints = rx.hints(diff_id)
        error = self._failed[diff_id]
        for hint in hints:
            try:
                self._layers.ensure(_layer(hint), hint.image, hint.namespace)
            except PuzzlefsError as again:
                error = again
            else:
                del self._failed[diff_id]
                return
        raise error

    def _drop_if_unused(self, diff_id: Digest) -> None:
        """Under the layer's lock: release it and forget how it was asked for, unless a snapshot uses it or it is lent."""
        if self._lent[diff_id] > 0:
            return
        del self._lent[diff_id]
        with self._store.read() as rx:
            if diff_id in rx.diff_ids():
                return
        try:
            self._layers.release(diff_id)
        except PuzzlefsError as error:
            _LOG.warning("layer %s could not be released, it is tried again at the next clean-up: %s", to_text(diff_id), error)
            return
        self._failed.pop(diff_id, None)
        with self._store.write() as tx:
            tx.forget(diff_id)


class KeyedLocks:
    """A lock for every key that somebody holds or waits for, and none for the others."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[Digest, tuple[threading.Lock, int]] = {}

    @contextmanager
    def hold(self, key: Digest, *, wait: bool = True) -> Iterator[bool]:
        """The lock of `key`, as long as the block lasts. Without `wait`, false if somebody else has it."""
        with self._guard:
            lock, users = self._locks.get(key, (threading.Lock(), 0))
            self._locks[key] = (lock, users + 1)
        held = False
        try:
            held = lock.acquire(blocking=wait)
            yield held
        finally:
            if held:
                lock.release()
            with self._guard:
                lock, users = self._locks[key]
                if users == 1:
                    del self._locks[key]
                else:
                    self._locks[key] = (lock, users - 1)


def _layer(hint: Hint) -> MetadataLayer:
    return _described(hint.annotations)


def _described(annotations: Mapping[str, str]) -> MetadataLayer:
    layer = parse(annotations)
    assert isinstance(layer, MetadataLayer)  # noqa: S101 - only such are recorded
    return layer
