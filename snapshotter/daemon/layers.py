"""Lazy layers on this node: their metadata fetched and checked, their mounts made, kept over restarts, and undone.

::

    <root>/layers/<diff ID, hex>/metadata    the uncompressed message, published only when its digest is right
    <root>/layers/<diff ID, hex>/number      names the mountpoint, short and never given out twice
    <root>/layers/<diff ID, hex>/source      where its chunks are, as far as it was found out: a start asks nobody
    <root>/l/<number>                        the mountpoint
    <root>/l/<number>.<copy>                 further mounts of the same layer, where it is wanted several times at once

A layer is mounted once, whatever chains, images and namespaces it is in: what it shows depends on its diff ID alone. Copies are
for podman, which stacks every occurrence of a layer in an image: overlayfs takes no directory twice, by whatever path.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from snapshotter.chunkstore.base import BlobReader
from snapshotter.chunkstore.directory import Sealing
from snapshotter.chunkstore.publish import publish
from snapshotter.chunkstore.retry import Patience, RetryPolicy
from snapshotter.daemon.origin import Origins
from snapshotter.daemon.sources import LayerSource, Sources
from snapshotter.errors import CorruptError, InvalidError, NotFoundError, PuzzlefsError, UnavailableError
from snapshotter.format.annotations import MetadataLayer, PackPlace
from snapshotter.format.compression import decompress
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.format.rootfs import BLOCK_SIZE, Rootfs
from snapshotter.format.verity import verity_digest
from snapshotter.registry.base import BlobSource
from snapshotter.snapshots.model import Usage

METADATA_STORED_MAX = 64 << 20
"""Largest stored metadata blob, in bytes."""
METADATA_MAX = 256 << 20
"""Largest metadata message, in bytes: about 1.6 million inodes. It is held in memory."""
FETCH_PATIENCE = RetryPolicy(attempts=4, first_pause=0.25, longest_retry_after=5.0, deadline=60.0)
"""How a layer's metadata and indexes are asked for: containerd prepares no other layer of the image meanwhile."""
RESTORE_THREADS = 8
MERGED_PACKS_MAX = 64
"""Most packs in which the chunks of one mounted layer are looked for, over all images that it is in."""
MERGED_IMAGES_MAX = 16
"""Most images whose repositories are asked for a layer's chunks."""

_log = logging.getLogger(__name__)


class Mounts(Protocol):
    """Makes and undoes the mounts of layers (`supervisor.Supervisor`)."""

    def mount(self, name: str, mountpoint: Path, metadata: Path, source: LayerSource) -> None:
        """Mount the layer whose message is the file `metadata`; it answers when this returns. `name` is the diff ID.

        Where an earlier daemon mounted it there already, that goes on.
        """
        ...

    def update(self, mountpoint: Path, source: LayerSource) -> None:
        """Have the layer's chunks come from `source` from now on."""
        ...

    def unmount(self, mountpoint: Path) -> None:
        """Undo `mount`. Containers that still use it keep it until they end."""
        ...


class ChunkSizes(Protocol):
    """Tells how much of a chunk is on this node."""

    def size(self, digest: Digest) -> int | None:
        """Bytes that the cached chunk takes, None where it is not cached."""
        ...


class Layers:
    """`snapshots.lazy.LazyLayers` over sources and mounts. Safe for use by many threads."""

    def __init__(
        self,
        root: Path,
        origins: Origins,
        sources: Sources,
        mounts: Mounts,
        cached: ChunkSizes,
        fetch_indexes: Callable[[Sequence[PackPlace], Sequence[BlobReader]], None],
        trim_indexes: Callable[[Collection[PackPlace]], None],
        sealing: Sealing | None = None,
        records: Path | None = None,
    ) -> None:
        """`root` is the snapshotter's; its directories are made. `sealing` has the kernel's fs-verity check the metadata.
        In `records` (None: not at all) what first starts read is recorded, and used when a layer is pulled again."""
        self._metadata_root = root / "layers"
        self._mount_root = root / "l"
        self._origins = origins
        self._sources = sources
        self._mounts = mounts
        self._cached = cached
        self._fetch_indexes = fetch_indexes
        self._trim_indexes = trim_indexes
        self._sealing = sealing
        self._records = records
        self._guard = threading.Lock()
        self._locks: dict[Digest, threading.Lock] = {}
        self._mounted: dict[Digest, LayerSource] = {}
        self._copies: dict[Digest, list[Path]] = {}
        for directory in (self._metadata_root, self._mount_root):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._numbers = itertools.count(1 + max(self._used_numbers(), default=0))

    def ensure(self, layer: MetadataLayer, image: str | None, namespace: str) -> None:
        """See `snapshots.lazy.LazyLayers`."""
        with self._locked(layer.diff_id):
            source = self._origins.find(layer, image, namespace)
            if layer.diff_id in self._mounted:
                self._learn(layer.diff_id, source)
                return
            try:
                if not self._is_intact(layer):
                    self._fetch(layer, source)
                self._mount(layer.diff_id, source, fresh=True)
            except PuzzlefsError as error:
                raise _explained(error, layer, source) from error
            except OSError as error:
                reason = UnavailableError(f"{error.filename or self._metadata_root}: {error.strerror or error}")
                raise _explained(reason, layer, source) from error

    def ensure_copies(self, diff_id: Digest, count: int) -> None:
        """Have `count` mounts of a mounted layer beside the first.

        Raises:
            NotFoundError: it is not mounted.
            PuzzlefsError: it cannot be mounted once more.
        """
        with self._locked(diff_id):
            if diff_id not in self._mounted:
                raise NotFoundError(f"layer {to_text(diff_id)} is not mounted")
            copies = self._copies.setdefault(diff_id, [])
            while len(copies) < count:
                mountpoint = self.mountpoint(diff_id, len(copies) + 1)
                _make_mountpoint(mountpoint)
                source = replace(self._mounted[diff_id], profile=None)  # the first one's mount fetches that
                self._mounts.mount(to_text(diff_id), mountpoint, self._metadata(diff_id), source)
                copies.append(mountpoint)

    def mountpoint(self, diff_id: Digest, copy: int = 0) -> Path:
        """See `snapshots.lazy.LazyLayers`; of a `copy` that is not the first mount, see `ensure_copies`."""
        try:
            number = int((self._directory(diff_id) / "number").read_text())
        except (FileNotFoundError, ValueError):
            raise NotFoundError(f"layer {to_text(diff_id)} is not on this node") from None
        return self._mount_root / (f"{number}.{copy}" if copy else str(number))

    def restore(self, layers: Iterable[tuple[MetadataLayer, str | None]]) -> Mapping[Digest, PuzzlefsError]:
        """See `snapshots.lazy.LazyLayers`. Several hints for one layer are tried as one source."""
        hints: dict[Digest, list[LayerSource]] = {}
        described: dict[Digest, MetadataLayer] = {}
        for layer, image in layers:
            hints.setdefault(layer.diff_id, []).append(_hinted(layer, image))
            described[layer.diff_id] = layer
        failed: dict[Digest, PuzzlefsError] = {}
        self._sweep()

        def mount(diff_id: Digest, sources: Sequence[LayerSource]) -> None:
            with self._locked(diff_id):
                if not self._is_intact(described[diff_id]):
                    raise NotFoundError(f"the metadata of layer {to_text(diff_id)} is gone: remove the image and pull it again")
                self._mount(diff_id, _merged([*self._remembered(diff_id), *sources]))

        with ThreadPoolExecutor(RESTORE_THREADS, "restore") as pool:
            waiting: dict[Digest, Future[None]] = {d: pool.submit(mount, d, sources) for d, sources in hints.items()}
        for diff_id, future in waiting.items():
            error = future.exception()
            if isinstance(error, PuzzlefsError):
                failed[diff_id] = error
            elif error is not None:
                failed[diff_id] = UnavailableError(f"layer {to_text(diff_id)} cannot be mounted: {error}")
        return failed

    def release(self, diff_id: Digest) -> None:
        """See `snapshots.lazy.LazyLayers`."""
        with self._locked(diff_id):
            with contextlib.suppress(NotFoundError):
                mountpoint = self.mountpoint(diff_id)
                for copy in self._mount_root.glob(f"{mountpoint.name}.*"):
                    self._mounts.unmount(copy)
                    _remove_mountpoint(copy)
                self._copies.pop(diff_id, None)
                # Also what this process did not mount: an earlier daemon was killed before it had recorded the snapshot.
                self._mounts.unmount(mountpoint)
                self._mounted.pop(diff_id, None)
                _remove_mountpoint(mountpoint)
            shutil.rmtree(self._directory(diff_id), ignore_errors=True)

    def trim(self, layers: Iterable[MetadataLayer]) -> None:
        """See `snapshots.lazy.LazyLayers`: the indexes of packs that no layer names."""
        self._trim_indexes({place for layer in layers for place in layer.packs})

    def usage(self, diff_id: Digest, below: Sequence[Digest] = ()) -> Usage:
        """See `snapshots.lazy.LazyLayers`: the metadata, and what of the layer's chunks is in the cache."""
        if diff_id in below:
            return Usage()
        shared = {chunk for other in below for chunk in self.chunks(other)}
        path = self._metadata(diff_id)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise NotFoundError(f"layer {to_text(diff_id)} is not on this node") from None
        rootfs = Rootfs.open(data)
        try:
            chunks = sum(self._cached.size(chunk) or 0 for chunk in {pair.digest for pair in rootfs.verities()} - shared)
            return Usage(len(data) + chunks, rootfs.inode_count)
        finally:
            rootfs.close()

    def mounted(self) -> Mapping[Digest, LayerSource]:
        """The layers that are mounted now, and where their chunks are from."""
        return dict(self._mounted)

    def chunks(self, diff_id: Digest) -> Sequence[Digest]:
        """Every chunk of a layer that is on this node, in the order of its metadata.

        Raises:
            NotFoundError: it is not here.
            CorruptError: its metadata is no layer's.
        """
        with self._opened(diff_id) as rootfs:
            return [pair.digest for pair in rootfs.verities()]

    def content_size(self, diff_id: Digest) -> int:
        """Bytes of the layer's files, in blocks of the file system, whether they are on this node or not.

        Raises:
            NotFoundError: the layer is not on this node.
        """
        with self._opened(diff_id) as rootfs:
            return rootfs.survey().blocks * BLOCK_SIZE

    @contextlib.contextmanager
    def _opened(self, diff_id: Digest) -> Iterator[Rootfs]:
        try:
            rootfs = Rootfs.open(self._metadata(diff_id).read_bytes())
        except FileNotFoundError:
            raise NotFoundError(f"layer {to_text(diff_id)} is not on this node") from None
        try:
            yield rootfs
        finally:
            rootfs.close()

    def _learn(self, diff_id: Digest, latest: LayerSource) -> None:
        """A mounted layer was asked for in another way: ask there first, since that is where the image is known to be now."""
        merged = _merged([latest, self._mounted[diff_id]])
        if merged != self._mounted[diff_id]:
            self._remember(diff_id, merged)
            for mountpoint in (self.mountpoint(diff_id), *self._copies.get(diff_id, ())):
                self._mounts.update(mountpoint, merged)
            self._mounted[diff_id] = merged

    def _fetch(self, layer: MetadataLayer, source: LayerSource) -> None:
        """Bring metadata and pack indexes to this node, at the same time, and publish the metadata if it is right."""
        stores = self._sources.open(source)
        # A pull that one answer of 503 fails would be retried by nobody: containerd's clients do not.
        patience = Patience(FETCH_PATIENCE)
        with ThreadPoolExecutor(1, "indexes") as pool:
            # With a profile the other indexes can wait until something else is read: a start may need none of them.
            needed = [place for place in layer.packs if layer.profile in (None, place.pack)]
            indexes = pool.submit(patience.run, lambda: self._fetch_indexes(needed, stores))
            message = patience.run(lambda: _first(stores, lambda store: _message(store, layer)))
            indexes.result()
        publish(self._metadata(layer.diff_id), message, None if self._sealing is None else self._sealing.enable)

    def _is_intact(self, layer: MetadataLayer) -> bool:
        """Whether the layer's metadata is here, as it was published; what is damaged is removed.

        A sealed file is measured against the label and read, which is when the kernel checks it; any other one is hashed. So
        is a sealed one that the label does not fit, since the diff ID is what counts and a label may lie.
        """
        path = self._metadata(layer.diff_id)
        try:
            with path.open("rb") as file:
                measured = None if self._sealing is None else self._sealing.measure(file.fileno())
                message = file.read()
            if measured == layer.verity or sha256(message) == layer.diff_id:
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

    def _remember(self, diff_id: Digest, source: LayerSource) -> None:
        publish(self._directory(diff_id) / "source", json.dumps(source.to_json()).encode())

    def _remembered(self, diff_id: Digest) -> Sequence[LayerSource]:
        """What `_remember` kept; nothing where the file is not there or not whole: the hints know the most of it too."""
        try:
            return [LayerSource.from_json(json.loads((self._directory(diff_id) / "source").read_bytes()))]
        except (OSError, ValueError, InvalidError):
            return []

    def _mount(self, diff_id: Digest, source: LayerSource, *, fresh: bool = False) -> None:
        """`fresh`: it was just pulled, and what comes next is a start. After a restart nothing is fetched unasked."""
        mountpoint = self._reserve(diff_id)
        if source not in self._remembered(diff_id):
            self._remember(diff_id, source)
        told = self._starting(diff_id, replace(source, mountpoint=str(mountpoint))) if fresh else replace(source, profile=None)
        self._mounts.mount(to_text(diff_id), mountpoint, self._metadata(diff_id), told)
        self._mounted[diff_id] = source

    def _starting(self, diff_id: Digest, source: LayerSource) -> LayerSource:
        """`source` with the start that was recorded on this node, or with where to record it; an image's own profile comes
        first."""
        if self._records is None or source.profile is not None:
            return source
        record = self._records / diff_id.hex()
        known = record.exists() and record.stat().st_size > 0
        return replace(source, start=str(record)) if known else replace(source, record=str(record))

    def _reserve(self, diff_id: Digest) -> Path:
        with contextlib.suppress(NotFoundError):
            mountpoint = self.mountpoint(diff_id)
            _make_mountpoint(mountpoint)
            return mountpoint
        with self._guard:
            number = next(self._numbers)
        publish(self._directory(diff_id) / "number", str(number).encode())
        mountpoint = self._mount_root / str(number)
        _make_mountpoint(mountpoint)
        return mountpoint

    def _sweep(self) -> None:
        """Take off and remove the mountpoints of layers whose directory is lost: nobody could find them again."""
        named = set()
        for path in self._metadata_root.glob("*/number"):
            with contextlib.suppress(OSError, ValueError):
                named.add(int(path.read_text()))
        for path in list(self._mount_root.iterdir()):
            number = path.name.partition(".")[0]
            if number.isdigit() and int(number) not in named:
                try:
                    self._mounts.unmount(path)
                    _remove_mountpoint(path)
                except PuzzlefsError as error:
                    _log.warning("%s; it is tried again at the next start", error)

    def _directory(self, diff_id: Digest) -> Path:
        return self._metadata_root / diff_id.hex()

    def _metadata(self, diff_id: Digest) -> Path:
        return self._directory(diff_id) / "metadata"

    def _used_numbers(self) -> Iterator[int]:
        yield from (int(path.name) for path in self._mount_root.iterdir() if path.name.isdigit())
        for path in self._metadata_root.glob("*/number"):
            with contextlib.suppress(ValueError):
                yield int(path.read_text())

    @contextlib.contextmanager
    def _locked(self, diff_id: Digest) -> Iterator[None]:
        with self._guard:
            lock = self._locks.setdefault(diff_id, threading.Lock())
        with lock:
            yield


def _hinted(layer: MetadataLayer, image: str | None) -> LayerSource:
    images = tuple(dict.fromkeys(ref for ref in (image, layer.source) if ref is not None))
    return LayerSource(layer.packs, images, to_text(layer.diff_id), profile=layer.profile, background=layer.background)


def _merged(sources: Sequence[LayerSource]) -> LayerSource:
    """All that `sources` name, the first ones first; no more than a hostile client may make a worker ask."""
    packs = dict.fromkeys(pack for source in sources for pack in source.packs)
    images = dict.fromkeys(image for source in sources for image in source.images)
    namespaces = dict.fromkeys(namespace for source in sources for namespace in source.namespaces)
    kept = tuple(packs)[:MERGED_PACKS_MAX]
    profile = next((source.profile for source in sources if any(place.pack == source.profile for place in kept)), None)
    return replace(
        sources[0],
        packs=kept,
        images=tuple(images)[:MERGED_IMAGES_MAX],
        namespaces=tuple(namespaces)[:MERGED_IMAGES_MAX],
        profile=profile,
    )


def _first(stores: Sequence[BlobSource], read: Callable[[BlobSource], bytes]) -> bytes:
    """What the first store answers that can. If none can, the most hopeful kind of error, with what each store said."""
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


def _message(store: BlobSource, layer: MetadataLayer) -> bytes:
    """The layer's metadata message from `store`, checked against every digest that the labels name."""
    message = decompress(store.read_blob(layer.metadata, METADATA_STORED_MAX), METADATA_MAX)
    if sha256(message) != layer.diff_id:
        raise CorruptError(
            f"metadata {to_text(layer.metadata)} of {store.name} is not that of diff ID {to_text(layer.diff_id)}"
        )
    if verity_digest(message) != layer.verity:
        raise CorruptError(
            f"metadata {to_text(layer.metadata)} of {store.name} has another fs-verity digest than its label says"
        )
    Rootfs.open(message).close()
    return message


def _explained(error: PuzzlefsError, layer: MetadataLayer, source: LayerSource) -> PuzzlefsError:
    """`error`, of the same category, with the image and the layer that it is about."""
    category = next(
        kind for kind in (UnavailableError, CorruptError, InvalidError, NotFoundError, PuzzlefsError) if isinstance(error, kind)
    )
    images = " or ".join(source.images) or "an unnamed image"
    return category(f"layer {to_text(layer.diff_id)} of {images} cannot be mounted: {error}")


def _remove_mountpoint(path: Path) -> None:
    try:
        path.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UnavailableError(f"mountpoint {path} cannot be removed: {error.strerror}") from error


def _make_mountpoint(path: Path) -> None:
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
