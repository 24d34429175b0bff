"""containerd's own gRPC API, as a client needs it to pull an image lazily.

One `Containerd` is one namespace of one containerd, as ``ctr -a ADDRESS -n NAMESPACE``. Everything that is created through it
between `lease` and the end of that block is safe from containerd's garbage collector until it is referenced.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from snapshotter.api import (
    content_pb2,
    content_pb2_grpc,
    diff_pb2,
    diff_pb2_grpc,
    images_pb2,
    images_pb2_grpc,
    leases_pb2,
    leases_pb2_grpc,
    snapshots_pb2,
    snapshots_pb2_grpc,
    types_pb2,
)
from snapshotter.errors import (
    AlreadyExistsError,
    CorruptError,
    FailedPreconditionError,
    InvalidError,
    NotFoundError,
    PuzzlefsError,
    UnavailableError,
    UnsupportedError,
)
from snapshotter.format.digest import Digest, to_text
from snapshotter.registry.base import Descriptor

LEASE_HOURS = 24
"""containerd deletes a lease that its client left behind after this time, as for its own client."""

_WRITE_SIZE = 1 << 20
_MESSAGE_MAX = 16 << 20

_CATEGORIES: Mapping[grpc.StatusCode, type[PuzzlefsError]] = {
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.DATA_LOSS: CorruptError,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedError,
}


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    """gRPC failures as this project's categories; `what` says what was being done."""
    try:
        yield
    except grpc.RpcError as error:
        code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
        details = error.details() if isinstance(error, grpc.Call) else str(error)
        raise _CATEGORIES.get(code, UnavailableError)(f"{what}: containerd says: {details} ({code.name})") from None


def connected(address: Path, timeout: float) -> grpc.Channel:
    """A channel to the containerd at `address`, the caller's to close.

    Raises:
        UnavailableError: nobody answers within `timeout` seconds.
    """
    options = [("grpc.max_receive_message_length", _MESSAGE_MAX), ("grpc.default_authority", "localhost")]
    channel = grpc.insecure_channel(f"unix://{address}", options=options)
    try:
        grpc.channel_ready_future(channel).result(timeout=timeout)
    except grpc.FutureTimeoutError:
        channel.close()
        raise UnavailableError(f"containerd does not answer at {address}: is it running, and is this its socket?") from None
    return channel


class Containerd:
    """A connection to containerd, in one namespace. Close it, or use it as a context manager."""

    def __init__(self, address: Path, namespace: str, timeout: float = 10.0) -> None:
        """Connect.

        Raises:
            UnavailableError: nobody answers at `address` within `timeout` seconds.
        """
        self.address = address
        self.namespace = namespace
        self._metadata: list[tuple[str, str]] = [("containerd-namespace", namespace)]
        self._channel = connected(address, timeout)
        self._content = content_pb2_grpc.ContentStub(self._channel)
        self._images = images_pb2_grpc.ImagesStub(self._channel)
        self._leases = leases_pb2_grpc.LeasesStub(self._channel)
        self._snapshots = snapshots_pb2_grpc.SnapshotsStub(self._channel)
        self._diff = diff_pb2_grpc.DiffStub(self._channel)

    def __enter__(self) -> Containerd:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    @contextlib.contextmanager
    def lease(self) -> Iterator[None]:
        """Hold a lease: what is created inside the block cannot be collected before the block ends."""
        identity = f"puzzlefs-{secrets.token_hex(8)}"
        with _translated("creating a lease"):
            self._leases.Create(leases_pb2.CreateRequest(id=identity, labels=_lease_labels()), metadata=self._metadata)
        plain = self._metadata
        self._metadata = [*plain, ("containerd-lease", identity)]
        try:
            yield
        finally:
            self._metadata = plain
            with contextlib.suppress(grpc.RpcError):  # it expires by itself
                self._leases.Delete(leases_pb2.DeleteRequest(id=identity), metadata=plain)

    def write_content(self, blob: Descriptor, data: Iterator[bytes], labels: Mapping[str, str]) -> None:
        """Store a blob with its labels; one that is there only gets the labels.

        Raises:
            UnavailableError: another client is writing it now.
            CorruptError: `data` is not what `blob` describes.
        """
        what = f"storing {to_text(blob.digest)} in the content store"
        try:
            with _translated(what):
                for _ in self._content.Write(_writes(blob, data, labels), metadata=self._metadata):
                    pass
        except AlreadyExistsError:
            self.label_content(blob.digest, labels)

    def label_content(self, digest: Digest, labels: Mapping[str, str]) -> None:
        """Set labels of a stored blob, leaving the others."""
        if not labels:
            return
        mask = FieldMask(paths=[f"labels.{key}" for key in labels])
        request = content_pb2.UpdateRequest(
            info=content_pb2.Info(digest=to_text(digest), labels=dict(labels)), update_mask=mask
        )
        with _translated(f"labelling {to_text(digest)}"):
            self._content.Update(request, metadata=self._metadata)

    def put_image(self, name: str, target: Descriptor) -> None:
        """Create the image record `name`, or point it at `target`."""
        descriptor = types_pb2.Descriptor(media_type=target.media_type, digest=to_text(target.digest), size=target.size)
        image = images_pb2.Image(name=name, target=descriptor)
        with _translated(f"recording image {name}"):
            try:
                self._images.Create(images_pb2.CreateImageRequest(image=image), metadata=self._metadata)
            except grpc.RpcError as error:
                if not isinstance(error, grpc.Call) or error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                    raise
                self._images.Update(
                    images_pb2.UpdateImageRequest(image=image, update_mask=FieldMask(paths=["target"])), metadata=self._metadata
                )

    def has_snapshot(self, snapshotter: str, name: str) -> bool:
        """Whether `snapshotter` has a snapshot of this name."""
        try:
            with _translated(f"looking for snapshot {name} of {snapshotter}"):
                self._snapshots.Stat(
                    snapshots_pb2.StatSnapshotRequest(snapshotter=snapshotter, key=name), metadata=self._metadata
                )
        except NotFoundError:
            return False
        return True

    def prepare(self, snapshotter: str, key: str, parent: str, labels: Mapping[str, str]) -> Sequence[Any]:
        """Prepare a snapshot; its mounts.

        Raises:
            AlreadyExistsError: the chain that the labels name is there: nothing has to be unpacked.
        """
        request = snapshots_pb2.PrepareSnapshotRequest(snapshotter=snapshotter, key=key, parent=parent, labels=dict(labels))
        with _translated(f"preparing {key} with snapshotter {snapshotter}"):
            return list(self._snapshots.Prepare(request, metadata=self._metadata).mounts)

    def apply(self, layer: Descriptor, mounts: Sequence[Any]) -> Digest:
        """Unpack a stored layer into `mounts`; its diff ID."""
        descriptor = types_pb2.Descriptor(media_type=layer.media_type, digest=to_text(layer.digest), size=layer.size)
        with _translated(f"unpacking layer {to_text(layer.digest)}"):
            applied = self._diff.Apply(diff_pb2.ApplyRequest(diff=descriptor, mounts=mounts), metadata=self._metadata).applied
        return Digest(bytes.fromhex(applied.digest.removeprefix("sha256:")))

    def commit(self, snapshotter: str, name: str, key: str, labels: Mapping[str, str]) -> None:
        """Commit the active snapshot `key` as `name`."""
        request = snapshots_pb2.CommitSnapshotRequest(snapshotter=snapshotter, name=name, key=key, labels=dict(labels))
        with _translated(f"committing {name} with snapshotter {snapshotter}"):
            self._snapshots.Commit(request, metadata=self._metadata)

    def remove_snapshot(self, snapshotter: str, key: str) -> None:
        """Remove a snapshot."""
        with _translated(f"removing {key} from snapshotter {snapshotter}"):
            self._snapshots.Remove(
                snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=key), metadata=self._metadata
            )


def _lease_labels() -> dict[str, str]:
    return {"containerd.io/gc.expire": (datetime.now(UTC) + timedelta(hours=LEASE_HOURS)).isoformat(timespec="seconds")}


def _writes(blob: Descriptor, data: Iterator[bytes], labels: Mapping[str, str]) -> Iterator[content_pb2.WriteContentRequest]:
    """The messages that store a blob: pieces at their offsets, the last of which commits (content.proto, Write)."""
    digest = to_text(blob.digest)
    reference = f"puzzlefs-{digest}-{secrets.token_hex(4)}"
    offset = 0
    for piece in data:
        for at in range(0, len(piece), _WRITE_SIZE):
            part = piece[at : at + _WRITE_SIZE]
            yield content_pb2.WriteContentRequest(
                action=content_pb2.WRITE, ref=reference, total=blob.size, expected=digest, offset=offset, data=part
            )
            offset += len(part)
    yield content_pb2.WriteContentRequest(
        action=content_pb2.COMMIT, ref=reference, total=blob.size, expected=digest, offset=offset, labels=dict(labels)
    )
