"""containerd's diff service for PuzzleFS layers: how an image becomes lazy for a client that sends no labels.

Such a client (``Image.Unpack``: a pull for all platforms, ``nerdctl load``, a run after a pull without unpacking) prepares an
ordinary snapshot, has the layer applied to its mounts, compares the answer with the diff ID in the image's configuration, and
commits. containerd, from 1.7 on, asks its differs in the order of ``plugins."io.containerd.service.v1.diff-service".default``,
the next one after each UNIMPLEMENTED (``plugins/services/diff/local.go``). So this one answers UNIMPLEMENTED to everything
that is not a PuzzleFS layer, and takes the mounts of the snapshotter beside it as the name of one of its snapshots, which it
makes that layer. Into other snapshotters' directories the layer's files are copied.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import grpc

from snapshotter.api import diff_pb2, diff_pb2_grpc, types_pb2
from snapshotter.errors import FailedPreconditionError, InvalidError
from snapshotter.format.annotations import MEDIA_TYPE_METADATA, MEDIA_TYPE_PACK, METADATA, PACK, MetadataLayer, PackLayer, parse
from snapshotter.format.digest import Digest, from_text, to_text
from snapshotter.snapshots import copying, mounts
from snapshotter.snapshots.answers import answering
from snapshotter.snapshots.lazy import diff_id_of
from snapshotter.snapshots.model import Mount
from snapshotter.snapshots.snapshotter import Snapshotter

_LOG = logging.getLogger(__name__)

NAMESPACE_HEADER = "containerd-namespace"
"""The header in which containerd says whose request it is (``pkg/namespaces/grpc.go``)."""


class DiffService(diff_pb2_grpc.DiffServicer):
    """The service, for the snapshots of `snapshotter`."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter

    def Apply(  # noqa: N802 - gRPC's names, here and below
        self, request: diff_pb2.ApplyRequest, context: grpc.ServicerContext
    ) -> diff_pb2.ApplyResponse:
        """Make what the mounts show the layer that the descriptor describes; the answer names its diff ID."""
        if request.diff.media_type not in (MEDIA_TYPE_METADATA, MEDIA_TYPE_PACK):
            context.abort(
                grpc.StatusCode.UNIMPLEMENTED,
                f"{request.diff.media_type} is no PuzzleFS layer: the next differ in the diff service's order takes it",
            )
        with answering(context, "Apply", request.diff.digest):
            layer = described(request.diff.media_type, request.diff.digest, request.diff.annotations)
            found = [Mount(mount.type, mount.source, tuple(mount.options)) for mount in request.mounts]
            if not self._snapshotter.adopt(found, layer):
                self._copy(layer, found, _namespace(context))
            return diff_pb2.ApplyResponse(applied=_applied(diff_id_of(layer)))

    def Diff(  # noqa: N802
        self, request: diff_pb2.DiffRequest, context: grpc.ServicerContext
    ) -> diff_pb2.DiffResponse:
        """Layers are made by containerd's own differs: what a container changed becomes an ordinary layer."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "PuzzleFS layers are made by `puzzlefs convert`")
        raise AssertionError  # abort() always raises

    def _copy(self, layer: MetadataLayer | PackLayer, found: list[Mount], namespace: str) -> None:
        """What a snapshotter gets that is not ours: the layer's files themselves."""
        if isinstance(layer, PackLayer):
            return
        upper = mounts.upper_of(found)
        if upper is None:
            raise FailedPreconditionError(
                f"layer {to_text(layer.diff_id)} can be unpacked into directories and overlayfs only, not into a mount of type "
                f"{found[0].type if found else 'nothing'}: use the snapshotter puzzlefs, or overlayfs"
            )
        with self._snapshotter.lent(layer, namespace) as source:
            copying.copy(source, upper, whiteouts=found[0].type == "overlay")
        _LOG.info("layer %s was copied to %s, a directory of another snapshotter", to_text(layer.diff_id), upper)


def described(media_type: str, digest: str, annotations: Mapping[str, str]) -> MetadataLayer | PackLayer:
    """The PuzzleFS layer that the blob `digest`, of one of our media types and with these annotations, holds.

    Raises:
        InvalidError: it lacks our annotations, or they break a rule or belong to another blob.
    """
    wanted = METADATA if media_type == MEDIA_TYPE_METADATA else PACK
    if wanted not in annotations:
        raise InvalidError(
            f"layer {digest} lost its annotation {wanted} on its way: copy the image with a tool that keeps "
            "annotations, or convert it again"
        )
    layer = parse({wanted: annotations[wanted]} if wanted == PACK else annotations)
    assert layer is not None  # noqa: S101 - the annotation is there
    named = layer.metadata if isinstance(layer, MetadataLayer) else layer.pack
    if named != from_text(digest):
        raise InvalidError(f"layer {digest} has the annotations of {to_text(named)}: convert the image again")
    return layer


def _applied(diff_id: Digest) -> types_pb2.Descriptor:
    # Nobody looks at the size of what was applied (``pkg/rootfs/apply.go``), and a lazy layer has none.
    return types_pb2.Descriptor(media_type="application/vnd.oci.image.layer.v1.tar", digest=to_text(diff_id))


def _namespace(context: grpc.ServicerContext) -> str:
    for key, value in context.invocation_metadata():
        if key == NAMESPACE_HEADER:
            return value if isinstance(value, str) else value.decode(errors="replace")
    return ""
