"""The reading half of `ImageStore` over an OCI layout (image-layout.md), wherever its files lie: in a directory, in a tar."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO, Protocol

from snapshotter.errors import CorruptError, InvalidError, NotFoundError
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.registry import layoutindex
from snapshotter.registry.base import LOCAL_MANIFEST_MAX, Descriptor
from snapshotter.registry.documents import manifest_type, parse_object
from snapshotter.registry.extent import Extent, exactly
from snapshotter.registry.verified import verified


class Files(Protocol):
    """The files of a layout, wherever they lie."""

    def document(self, name: str) -> bytes:
        """The start of the file `name` (``oci-layout``, ``index.json``), at most `MANIFEST_MAX` + 1 bytes; NotFoundError."""
        ...

    def blob(self, digest: Digest) -> Extent | None:
        """The blob's bytes, to be closed; None if it is not there."""
        ...


class LayoutReader:
    """The reading half of an OCI layout over some `Files`."""

    def __init__(self, name: str, files: Files) -> None:
        self._name = name
        self._files = files

    @property
    def name(self) -> str:
        """See `ImageStore`."""
        return self._name

    def manifest(self, reference: str) -> tuple[Descriptor, bytes]:
        """See `ImageStore`."""
        entry = layoutindex.find(self.index(), reference, self.name)
        what = f"manifest {reference!r} of {self.name}"
        with self._open(entry.digest) as extent:
            if extent.size > LOCAL_MANIFEST_MAX:
                raise CorruptError(f"{what} is larger than {LOCAL_MANIFEST_MAX} bytes, the most that is read")
            data = exactly(extent, 0, extent.size, what)
        digest = sha256(data)
        if digest != entry.digest:
            raise CorruptError(f"{what} is corrupt: its content has the digest {to_text(digest)}, not {to_text(entry.digest)}")
        return Descriptor(manifest_type(data, entry.media_type or None, what, LOCAL_MANIFEST_MAX), digest, len(data)), data

    def only_image(self) -> str:
        """The digest, as text, of the one image that is here (see `layoutindex.only`)."""
        return layoutindex.only(self.index(), self.name)

    def open_blob(self, blob: Descriptor) -> BinaryIO:
        """See `ImageStore`."""
        extent = self._open(blob.digest)
        try:
            if extent.size != blob.size:
                digest = to_text(blob.digest)
                raise CorruptError(f"blob {digest} of {self.name} has {extent.size} bytes, its descriptor says {blob.size}")
            return verified(extent, blob, self.name, extent.close)
        except CorruptError:
            extent.close()
            raise

    def read_range(self, digest: Digest, offset: int, length: int) -> bytes:
        """See `ImageStore`."""
        if offset < 0 or length < 0:
            raise InvalidError(f"no range of a blob: {length} bytes from {offset} on")
        if length == 0:
            return b""
        with self._open(digest) as extent:
            return exactly(extent, offset, length, f"blob {to_text(digest)} of {self.name}")

    def read_blob(self, digest: Digest, limit: int) -> bytes:
        """See `BlobSource`."""
        size = self.blob_size(digest)
        if size is None:
            raise NotFoundError(f"{self.name} has no blob {to_text(digest)}")
        if size > limit:
            raise CorruptError(f"blob {to_text(digest)} of {self.name} has {size} bytes, at most {limit} are read")
        with self.open_blob(Descriptor("", digest, size)) as stream:
            return stream.read()

    def has_blob(self, digest: Digest) -> bool:
        """See `ImageStore`."""
        return self.blob_size(digest) is not None

    def blob_size(self, digest: Digest) -> int | None:
        """Bytes of a blob, None where there is no such blob."""
        extent = self._files.blob(digest)
        if extent is None:
            return None
        with extent:
            return extent.size

    def tags(self) -> Iterator[str]:
        """See `ImageStore`. A layout that does not exist has none, as a repository that was never pushed to."""
        try:
            index = self.index()
        except NotFoundError:
            return
        yield from layoutindex.tags(index, self.name)

    def index(self) -> dict[str, Any]:
        """The layout's index.json.

        Raises:
            NotFoundError: there is no layout here. CorruptError: it is broken, or of a version that we do not know.
        """
        version = parse_object(self._files.document("oci-layout"), f"{self.name}: oci-layout").get("imageLayoutVersion")
        if not isinstance(version, str) or not version.startswith("1."):
            raise CorruptError(f"{self.name}: the layout's version is {version!r}, not 1.x")
        return parse_object(self._files.document("index.json"), f"{self.name}: index.json")

    def close(self) -> None:
        """See `ImageStore`."""

    def _open(self, digest: Digest) -> Extent:
        extent = self._files.blob(digest)
        if extent is None:
            raise NotFoundError(f"{self.name} has no blob {to_text(digest)}")
        return extent
