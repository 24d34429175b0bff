"""What containerd has, asked over its API: plugins, namespaces, images, and which of their layers are lazy."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from google.protobuf import empty_pb2

from snapshotter.api import (
    content_pb2,
    content_pb2_grpc,
    images_pb2,
    images_pb2_grpc,
    introspection_pb2,
    introspection_pb2_grpc,
    namespaces_pb2,
    namespaces_pb2_grpc,
    snapshots_pb2,
    snapshots_pb2_grpc,
    version_pb2_grpc,
)
from snapshotter.daemon.containerd import connected
from snapshotter.doctor.containerd import LoadedPlugin
from snapshotter.doctor.images import ImageFacts, LayerFacts
from snapshotter.errors import NotFoundError, PuzzlefsError
from snapshotter.format.annotations import parse as puzzlefs_layer
from snapshotter.format.digest import Digest, chain_id, from_text, to_text
from snapshotter.registry import documents
from snapshotter.registry.base import MANIFEST_MAX, Descriptor
from snapshotter.registry.platforms import Platform, select

CALL_TIMEOUT = 10.0
_REF = "containerd.io/snapshot.ref"


class Inventory:
    """A connection to containerd, for reading only. Close it, or use it as a context manager."""

    def __init__(self, address: Path, timeout: float = 3.0) -> None:
        """Connect.

        Raises:
            UnavailableError: nobody answers at `address` within `timeout` seconds.
        """
        self._channel = connected(address, timeout)
        self.content = content_pb2_grpc.ContentStub(self._channel)
        self._images = images_pb2_grpc.ImagesStub(self._channel)
        self.snapshots = snapshots_pb2_grpc.SnapshotsStub(self._channel)

    def __enter__(self) -> Inventory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._channel.close()

    def version(self) -> str:
        """containerd's version."""
        answer = version_pb2_grpc.VersionStub(self._channel).Version(empty_pb2.Empty(), timeout=CALL_TIMEOUT)
        return str(answer.version)

    def plugins(self) -> tuple[LoadedPlugin, ...]:
        """Every plugin, loaded or not."""
        stub = introspection_pb2_grpc.IntrospectionStub(self._channel)
        answer = stub.Plugins(introspection_pb2.PluginsRequest(), timeout=CALL_TIMEOUT)
        return tuple(
            LoadedPlugin(plugin.type, plugin.id, str(plugin.init_err.message), dict(plugin.exports))
            for plugin in answer.plugins
        )

    def images(self, snapshotter: str) -> Iterable[ImageFacts]:
        """Every image of every namespace, its layers as `snapshotter` has them."""
        stub = namespaces_pb2_grpc.NamespacesStub(self._channel)
        for namespace in stub.List(namespaces_pb2.ListNamespacesRequest(), timeout=CALL_TIMEOUT).namespaces:
            space = _Namespace(self, namespace.name, snapshotter)
            listed = self._images.List(images_pb2.ListImagesRequest(), metadata=space.metadata, timeout=CALL_TIMEOUT).images
            for image in sorted(listed, key=lambda image: str(image.name)):
                yield space.image(image)


class _Namespace:
    """One namespace: what of it is looked at once."""

    def __init__(self, inventory: Inventory, name: str, snapshotter: str) -> None:
        self.name = name
        self.metadata = [("containerd-namespace", name)]
        self._inventory = inventory
        self._snapshotter = snapshotter
        self._known: dict[str, Any] | None = None

    def image(self, image: Any) -> ImageFacts:
        """What is known about one image record."""
        try:
            target = Descriptor(str(image.target.media_type), from_text(str(image.target.digest)), int(image.target.size))
            return ImageFacts(self.name, str(image.name), tuple(self._layers(target, str(image.name))))
        except grpc.RpcError as error:
            details = error.details() if isinstance(error, grpc.Call) else str(error)
            return ImageFacts(self.name, str(image.name), error=str(details))
        except (PuzzlefsError, KeyError, TypeError) as error:
            return ImageFacts(self.name, str(image.name), error=str(error))

    def _layers(self, target: Descriptor, what: str) -> Iterable[LayerFacts]:
        data = self._read(target.digest)
        if documents.is_index(target.media_type):
            entries = [documents.descriptor_from_json(entry, what) for entry in documents.parse_object(data, what)["manifests"]]
            data = self._read(select(entries, Platform.of_this_machine(), what).digest)
        manifest = documents.parse_object(data, what)
        config = documents.parse_object(self._read(documents.descriptor_from_json(manifest["config"], what).digest), what)
        layers = [documents.descriptor_from_json(layer, what) for layer in manifest["layers"]]
        chain: Digest | None = None
        for layer, diff_id in zip(layers, config["rootfs"]["diff_ids"], strict=False):
            chain = chain_id(chain, from_text(str(diff_id)))
            described = puzzlefs_layer(layer.annotations) is not None
            found = self._snapshot(to_text(chain))
            lazy = found is not None and described and puzzlefs_layer(dict(found.labels)) is not None
            yield LayerFacts(
                puzzlefs=described,
                size=layer.size,
                downloaded=self._stored(layer.digest),
                lazy=lazy,
                unpacked=found is not None and not lazy,
                cached=self._usage(found.name) if found is not None else 0,
            )

    def _snapshot(self, chain: str) -> Any:
        """The committed snapshot of this chain: ours carries the chain as a label, an ordinary one as its name."""
        if self._known is None:
            self._known = {}
            request = snapshots_pb2.ListSnapshotsRequest(snapshotter=self._snapshotter)
            for answer in self._inventory.snapshots.List(request, metadata=self.metadata, timeout=CALL_TIMEOUT):
                for info in answer.info:
                    if info.kind == snapshots_pb2.COMMITTED:
                        self._known.setdefault(str(info.name), info)
                        self._known[str(info.labels.get(_REF) or info.name)] = info
        return self._known.get(chain)

    def _usage(self, name: str) -> int:
        request = snapshots_pb2.UsageRequest(snapshotter=self._snapshotter, key=name)
        return int(self._inventory.snapshots.Usage(request, metadata=self.metadata, timeout=CALL_TIMEOUT).size)

    def _stored(self, digest: Digest) -> bool:
        try:
            request = content_pb2.InfoRequest(digest=to_text(digest))
            self._inventory.content.Info(request, metadata=self.metadata, timeout=CALL_TIMEOUT)
        except grpc.RpcError as error:
            if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.NOT_FOUND:
                return False
            raise
        return True

    def _read(self, digest: Digest) -> bytes:
        data = bytearray()
        request = content_pb2.ReadContentRequest(digest=to_text(digest))
        for answer in self._inventory.content.Read(request, metadata=self.metadata, timeout=CALL_TIMEOUT):
            data += answer.data
            if len(data) > MANIFEST_MAX:
                raise NotFoundError(f"{to_text(digest)} is longer than {MANIFEST_MAX} bytes")
        return bytes(data)
