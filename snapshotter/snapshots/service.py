"""containerd's snapshots service over a `Snapshotter`: messages in, messages out, errors as codes.

Everything that a client can send has a bound, checked here; what is beyond it is INVALID_ARGUMENT.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import grpc
from google.protobuf import empty_pb2, timestamp_pb2

from snapshotter import errors
from snapshotter.api import snapshots_pb2, snapshots_pb2_grpc, types_pb2
from snapshotter.snapshots.answers import answering
from snapshotter.snapshots.model import Info, Kind, Mount
from snapshotter.snapshots.snapshotter import Snapshotter

KEY_MAX = 4096
"""Longest key, name or parent, in bytes."""

LABEL_MAX = 4096
"""Longest label, key and value together, in bytes (containerd's ``labels/validate.go``)."""

LABELS_MAX = 1024
"""Most labels of one snapshot."""

LABELS_SIZE_MAX = 1 << 20
"""Most bytes that the labels of one snapshot may take, so that any answer of List fits gRPC's 4 MiB."""

PAGE_SIZE = 1 << 20
"""Bytes after which an answer of List is sent and another begun."""

PAGE_COUNT = 100
"""Snapshots after which an answer of List is sent and another begun (as containerd's own service does)."""

_NANO = 10**9

_KINDS = {Kind.VIEW: snapshots_pb2.VIEW, Kind.ACTIVE: snapshots_pb2.ACTIVE, Kind.COMMITTED: snapshots_pb2.COMMITTED}


class SnapshotsService(snapshots_pb2_grpc.SnapshotsServicer):
    """The service. The name of the snapshotter in a request is containerd's configuration and is not looked at."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter

    def Prepare(  # noqa: N802 - gRPC's names, here and below
        self, request: snapshots_pb2.PrepareSnapshotRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.PrepareSnapshotResponse:
        """A new active snapshot."""
        with answering(context, "Prepare", request.key):
            key, parent, labels = checked_key(request.key), checked_parent(request.parent), checked_labels(request.labels)
            return snapshots_pb2.PrepareSnapshotResponse(mounts=mount_messages(self._snapshotter.prepare(key, parent, labels)))

    def View(  # noqa: N802
        self, request: snapshots_pb2.ViewSnapshotRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.ViewSnapshotResponse:
        """A new view."""
        with answering(context, "View", request.key):
            key, parent, labels = checked_key(request.key), checked_parent(request.parent), checked_labels(request.labels)
            return snapshots_pb2.ViewSnapshotResponse(mounts=mount_messages(self._snapshotter.view(key, parent, labels)))

    def Mounts(  # noqa: N802
        self, request: snapshots_pb2.MountsRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.MountsResponse:
        """The mounts of an active snapshot or a view."""
        with answering(context, "Mounts", request.key):
            return snapshots_pb2.MountsResponse(mounts=mount_messages(self._snapshotter.mounts(checked_key(request.key))))

    def Commit(  # noqa: N802
        self, request: snapshots_pb2.CommitSnapshotRequest, context: grpc.ServicerContext
    ) -> empty_pb2.Empty:
        """Commit an active snapshot."""
        with answering(context, "Commit", request.key):
            name, key, labels = checked_key(request.name), checked_key(request.key), checked_labels(request.labels)
            self._snapshotter.commit(name, key, labels, checked_parent(request.parent))
            return empty_pb2.Empty()

    def Remove(  # noqa: N802
        self, request: snapshots_pb2.RemoveSnapshotRequest, context: grpc.ServicerContext
    ) -> empty_pb2.Empty:
        """Forget a snapshot."""
        with answering(context, "Remove", request.key):
            self._snapshotter.remove(checked_key(request.key))
            return empty_pb2.Empty()

    def Stat(  # noqa: N802
        self, request: snapshots_pb2.StatSnapshotRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.StatSnapshotResponse:
        """What is known about a snapshot."""
        with answering(context, "Stat", request.key):
            return snapshots_pb2.StatSnapshotResponse(info=info_message(self._snapshotter.stat(checked_key(request.key))))

    def Update(  # noqa: N802
        self, request: snapshots_pb2.UpdateSnapshotRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.UpdateSnapshotResponse:
        """Change labels."""
        with answering(context, "Update", request.info.name):
            name, labels, fields = (
                checked_key(request.info.name),
                checked_labels(request.info.labels),
                request.update_mask.paths,
            )
            if len(fields) > LABELS_MAX:
                raise errors.InvalidError(f"update mask with {len(fields)} paths, at most {LABELS_MAX} are taken")
            return snapshots_pb2.UpdateSnapshotResponse(info=info_message(self._snapshotter.update(name, labels, list(fields))))

    def List(  # noqa: N802
        self, request: snapshots_pb2.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> Iterator[snapshots_pb2.ListSnapshotsResponse]:
        """The snapshots that a filter wants, in as many messages as it takes."""
        with answering(context, "List", ""):
            yield from pages(self._snapshotter.walk(list(request.filters)))

    def Usage(  # noqa: N802
        self, request: snapshots_pb2.UsageRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.UsageResponse:
        """What a snapshot takes on disk."""
        with answering(context, "Usage", request.key):
            usage = self._snapshotter.usage(checked_key(request.key))
            return snapshots_pb2.UsageResponse(size=usage.size, inodes=usage.inodes)

    def Cleanup(  # noqa: N802
        self, request: snapshots_pb2.CleanupRequest, context: grpc.ServicerContext
    ) -> empty_pb2.Empty:
        """Delete what Remove left behind."""
        with answering(context, "Cleanup", ""):
            self._snapshotter.cleanup()
            return empty_pb2.Empty()


def checked_key(key: str) -> str:
    """`key`, if it can be one.

    Raises:
        InvalidError: it is empty or too long.
    """
    if not key:
        raise errors.InvalidError("a snapshot's key must not be empty")
    return checked_parent(key)


def checked_parent(parent: str) -> str:
    """`parent`, if it can be one; empty means none.

    Raises:
        InvalidError: it is too long.
    """
    size = len(parent.encode())
    if size > KEY_MAX:
        raise errors.InvalidError(f"snapshot key of {size} bytes ({parent[:60]!r}…), at most {KEY_MAX} are taken")
    return parent


def checked_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """`labels` as a dictionary, if a snapshot can have them.

    Raises:
        InvalidError: one is too long, or they are too many.
    """
    if len(labels) > LABELS_MAX:
        raise errors.InvalidError(f"{len(labels)} labels, at most {LABELS_MAX} are taken")
    total = 0
    for key, value in labels.items():
        size = len(key.encode()) + len(value.encode())
        if size > LABEL_MAX:
            raise errors.InvalidError(f"label {key[:60]!r} takes {size} bytes with its value, at most {LABEL_MAX} are taken")
        total += size
    if total > LABELS_SIZE_MAX:
        raise errors.InvalidError(f"labels of {total} bytes, at most {LABELS_SIZE_MAX} are taken")
    return dict(labels)


def pages(infos: Iterable[Info]) -> Iterator[snapshots_pb2.ListSnapshotsResponse]:
    """`infos` as messages of bounded size; none for no snapshots."""
    page, size = snapshots_pb2.ListSnapshotsResponse(), 0
    for info in infos:
        message = info_message(info)
        if page.info and (size + message.ByteSize() > PAGE_SIZE or len(page.info) >= PAGE_COUNT):
            yield page
            page, size = snapshots_pb2.ListSnapshotsResponse(), 0
        page.info.append(message)
        size += message.ByteSize()
    if page.info:
        yield page


def info_message(info: Info) -> snapshots_pb2.Info:
    """`info` as containerd's message."""
    return snapshots_pb2.Info(
        name=info.name,
        parent=info.parent,
        kind=_KINDS[info.kind],
        created_at=_timestamp(info.created),
        updated_at=_timestamp(info.updated),
        labels=info.labels,
    )


def mount_messages(mounts: Sequence[Mount]) -> list[types_pb2.Mount]:
    """`mounts` as containerd's messages."""
    return [types_pb2.Mount(type=mount.type, source=mount.source, options=mount.options) for mount in mounts]


def _timestamp(nanoseconds: int) -> timestamp_pb2.Timestamp:
    seconds, nanos = divmod(nanoseconds, _NANO)
    return timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos)
