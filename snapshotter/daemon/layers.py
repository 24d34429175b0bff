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
from snapshotter.daemon import metadata, mountpoints
from snapshotter.daemon.metadata import MetadataFiles
from snapshotter.daemon.mountpoints import Mountpoints
from snapshotter.daemon.origin import Origins
from snapshotter.daemon.sources import LayerSource, Sources
from snapshotter.errors import CorruptError, InvalidError, NotFoundError, PuzzlefsError, UnavailableError
from snapshotter.format.annotations import MetadataLayer, PackPlace
from snapshotter.format.digest import Digest, to_text
from snapshotter.format.rootfs import BLOCK_SIZE
from snapshotter.snapshots.model import Usage

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
        self._directories = root / "layers"
        self._origins = origins
        self._sources = sources
        self._mounts = mounts
        self._cached = cached
        self._fetch_indexes = fetch_indexes
        self._trim_indexes = trim_indexes
        self._records = records
        self._guard = threading.Lock()
        self._locks: dict[Digest, threading.Lock] = {}
        self._mounted: dict[Digest, LayerSource] = {}
        self._copies: dict[Digest, list[Path]] = {}
        for directory in (self._directories, root / "l"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._metadata = MetadataFiles(self._directories, sealing)
        self._mountpoints = Mountpoints(self._directories, root / "l")

    def ensure(self, layer: MetadataLayer, image: str | None, namespace: str) -> None:
        """See `snapshots.lazy.LazyLayers`."""
        with self._locked(layer.diff_id):
            source = self._origins.find(layer, image, namespace)
            if layer.diff_id in self._mounted:
                self._learn(layer.diff_id, source)
                return
            try:
                if not self._metadata.is_intact(layer):
                    self._fetch(layer, source)
                self._mount(layer.diff_id, source, fresh=True)
            except PuzzlefsError as error:
                raise _explained(error, layer, source) from error
            except OSError as error:
                raise _explained(self._unavailable(error), layer, source) from error

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
            source = replace(self._mounted[diff_id], profile=None)  # the first one's mount fetches that
            while len(copies) < count:
                try:
                    mountpoint = self._mountpoints.make(diff_id, len(copies) + 1)
                    self._mounts.mount(to_text(diff_id), mountpoint, self._metadata.path(diff_id), source)
                except OSError as error:
                    raise self._unavailable(error) from error
                copies.append(mountpoint)

    def mountpoint(self, diff_id: Digest, copy: int = 0) -> Path:
        """See `snapshots.lazy.LazyLayers`; of a `copy` that is not the first mount, see `ensure_copies`."""
        return self._mountpoints.of(diff_id, copy)

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
                if not self._metadata.is_intact(described[diff_id]):
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
            # Also what this process did not mount: an earlier daemon was killed before it had recorded the snapshot.
            for mountpoint in self._mountpoints.all_of(diff_id):
                self._mounts.unmount(mountpoint)
                mountpoints.remove(mountpoint)
            self._copies.pop(diff_id, None)
            self._mounted.pop(diff_id, None)
            shutil.rmtree(self._directory(diff_id), ignore_errors=True)

    def trim(self, layers: Iterable[MetadataLayer]) -> None:
        """See `snapshots.lazy.LazyLayers`: the indexes of packs that no layer names."""
        self._trim_indexes({place for layer in layers for place in layer.packs})

    def usage(self, diff_id: Digest, below: Sequence[Digest] = ()) -> Usage:
        """See `snapshots.lazy.LazyLayers`: the metadata, and what of the layer's chunks is in the cache."""
        if diff_id in below:
            return Usage()
        shared = {chunk for other in below for chunk in self.chunks(other)}
        with self._metadata.opened(diff_id) as rootfs:
            chunks = sum(self._cached.size(chunk) or 0 for chunk in {pair.digest for pair in rootfs.verities()} - shared)
            return Usage(self._metadata.path(diff_id).stat().st_size + chunks, rootfs.inode_count)

    def mounted(self) -> Mapping[Digest, LayerSource]:
        """The layers that are mounted now, and where their chunks are from."""
        return dict(self._mounted)

    def chunks(self, diff_id: Digest) -> Sequence[Digest]:
        """Every chunk of a layer that is on this node, in the order of its metadata.

        Raises:
            NotFoundError: it is not here.
            CorruptError: its metadata is no layer's.
        """
        with self._metadata.opened(diff_id) as rootfs:
            return [pair.digest for pair in rootfs.verities()]

    def content_size(self, diff_id: Digest) -> int:
        """Bytes of the layer's files, in blocks of the file system, whether they are on this node or not.

        Raises:
            NotFoundError: the layer is not on this node.
        """
        with self._metadata.opened(diff_id) as rootfs:
            return rootfs.survey().blocks * BLOCK_SIZE

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
            message = patience.run(lambda: metadata.fetch(layer, stores, self._directories))
            indexes.result()
        self._metadata.publish(layer, message)

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
        mountpoint = self._mountpoints.make(diff_id)
        if source not in self._remembered(diff_id):
            self._remember(diff_id, source)
        told = self._starting(diff_id, replace(source, mountpoint=str(mountpoint))) if fresh else replace(source, profile=None)
        self._mounts.mount(to_text(diff_id), mountpoint, self._metadata.path(diff_id), told)
        self._mounted[diff_id] = source

    def _starting(self, diff_id: Digest, source: LayerSource) -> LayerSource:
        """`source` with the start that was recorded on this node, or with where to record it; an image's own profile comes
        first."""
        if self._records is None or source.profile is not None:
            return source
        record = self._records / diff_id.hex()
        known = record.exists() and record.stat().st_size > 0
        return replace(source, start=str(record)) if known else replace(source, record=str(record))

    def _sweep(self) -> None:
        """Take off and remove the mountpoints of layers whose directory is lost."""
        for mountpoint in self._mountpoints.lost():
            try:
                self._mounts.unmount(mountpoint)
                mountpoints.remove(mountpoint)
            except PuzzlefsError as error:
                _log.warning("%s; it is tried again at the next start", error)

    def _directory(self, diff_id: Digest) -> Path:
        return self._directories / diff_id.hex()

    def _unavailable(self, error: OSError) -> UnavailableError:
        return UnavailableError(f"{error.filename or self._directories}: {error.strerror or error}")

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


def _explained(error: PuzzlefsError, layer: MetadataLayer, source: LayerSource) -> PuzzlefsError:
    """`error`, of the same category, with the image and the layer that it is about."""
    category = next(
        kind for kind in (UnavailableError, CorruptError, InvalidError, NotFoundError, PuzzlefsError) if isinstance(error, kind)
    )
    images = " or ".join(source.images) or "an unnamed image"
    return category(f"layer {to_text(layer.diff_id)} of {images} cannot be mounted: {error}")
