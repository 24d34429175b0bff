"""What a place that keeps images offers: a registry's repository, an OCI layout directory, an OCI archive.

The vocabulary is the OCI image and distribution specifications'. ``transports.parse`` turns skopeo's notation
(``docker://``, ``oci:DIR:TAG``, ``oci-archive:FILE:TAG``) into one of these and a reference inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol, runtime_checkable

from snapshotter.format.digest import Digest

MANIFEST_MAX = 4 << 20
"""Largest manifest, index or configuration that is read, in bytes (the distribution specification's recommended limit)."""

LOCAL_MANIFEST_MAX = 64 << 20
"""The same for the manifest of an image in a layout: upstream's lists every chunk, so this is an image of some 25 GB."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """An OCI content descriptor. `size` counts bytes as stored."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Mapping[str, object] | None = None


class ImageStore(Protocol):
    """One repository. Every method may be called from several threads at once.

    `reference` is a tag or a ``sha256:`` digest in text form. Failures are `errors.NotFoundError` (no such manifest or blob),
    `errors.CorruptError` (content does not match its digest), `errors.UnavailableError` (cannot be asked now) and
    `errors.InvalidError` (the place refuses the request for good: denied, unsupported); messages name the place.
    """

    @property
    def name(self) -> str:
        """For logs and errors: ``registry.example:5000/library/debian``, ``oci:/srv/images``."""
        ...

    def manifest(self, reference: str) -> tuple[Descriptor, bytes]:
        """The manifest or index that `reference` names, checked against its digest."""
        ...

    def open_blob(self, blob: Descriptor) -> BinaryIO:
        """The whole blob as a stream. Size and digest are checked as it is read: the read that reaches a wrong end raises."""
        ...

    def read_range(self, digest: Digest, offset: int, length: int) -> bytes:
        """Exactly `length` bytes of a blob from `offset` on, unverified (see `chunkstore.base.BlobReader`)."""
        ...

    def has_blob(self, digest: Digest) -> bool:
        """Whether the blob is in this repository."""
        ...

    def put_blob(self, blob: Descriptor, data: BinaryIO) -> bool:
        """Store the blob that `data` yields; False if it was there already (then `data` may be unread)."""
        ...

    def put_manifest(self, manifest: Descriptor, data: bytes, tag: str | None) -> None:
        """Store a manifest or index and, unless `tag` is None, point the tag at it."""
        ...

    def tags(self) -> Iterator[str]:
        """All tags of this repository, in the order in which the place lists them."""
        ...

    def close(self) -> None:
        """Finish what is pending (an archive is written here) and give back connections and files."""
        ...


@runtime_checkable
class Layout(ImageStore, Protocol):
    """A local layout: it also knows how large a blob is that no manifest lists (upstream's delta images have such chunks)."""

    def blob_size(self, digest: Digest) -> int | None:
        """The blob's size in bytes, None if there is none."""
        ...


@runtime_checkable
class NamingStore(ImageStore, Protocol):
    """An image store that names what it is given: bytes need not be hashed once more to be checked against their name."""

    def put_data(self, data: bytes) -> Digest:
        """Store `data` as a blob, unless it is there already: its digest."""
        ...

    def put_made(self, write: Callable[[int], Digest]) -> tuple[Digest, bool]:
        """Store the blob that `write` writes to a file's descriptor under the digest that it returns, which is believed.

        Returns the digest, and False if the blob was there already. What `write` raises comes through.
        """
        ...


class WritableLayout(Layout, NamingStore, Protocol):
    """A local layout that images are built in."""


class BlobSource(Protocol):
    """Where the blobs of an image may be read: what lazy layers need of a place. Failures are `ImageStore`'s."""

    @property
    def name(self) -> str:
        """For logs and errors, with the host that is asked."""
        ...

    def read_range(self, digest: Digest, offset: int, length: int) -> bytes:
        """Exactly `length` bytes of a blob from `offset` on, unverified (see `chunkstore.base.BlobReader`)."""
        ...

    def read_blob(self, digest: Digest, limit: int) -> bytes:
        """A whole blob whose size nothing has told, checked against its digest.

        Raises as `ImageStore` says; CorruptError also where it is larger than `limit` bytes.
        """
        ...
