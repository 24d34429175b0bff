"""`ImageStore` over an OCI layout: a directory with ``oci-layout``, ``index.json`` and ``blobs/sha256/`` (image-layout.md).

Names of blobs are made from digests, which are 32 bytes and nothing else, so no reference leads outside the directory. What
is written is published by temporary name, fsync and rename; the index names an image when all of it is on the disk. Several
processes may write: the index is changed under a lock on the directory.

Blobs that are symbolic links are followed when read: build systems make such layouts, and what is read is checked by digest.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from snapshotter.errors import CorruptError, InvalidError, NotFoundError, PuzzlefsError, UnavailableError
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.registry import layoutindex
from snapshotter.registry.base import LOCAL_MANIFEST_MAX, MANIFEST_MAX, Descriptor
from snapshotter.registry.documents import canonical_json
from snapshotter.registry.extent import BLOCK, Extent, exactly
from snapshotter.registry.layoutreader import LayoutReader
from snapshotter.registry.uncommitted import Uncommitted
from snapshotter.registry.verified import Checker

_FOR_GOOD = (
    errno.EEXIST,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EINVAL,
)


class _Directory:
    """`Files` in a directory."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.blobs = root / "blobs" / "sha256"
        self._name = name

    def document(self, name: str) -> bytes:
        extent = self._extent(self.root / name)
        if extent is None:
            raise NotFoundError(f"{self._name} is not an OCI image layout: it has no {name}")
        with extent:
            return exactly(extent, 0, min(extent.size, MANIFEST_MAX + 1), f"{self._name}: {name}")

    def blob(self, digest: Digest) -> Extent | None:
        return self._extent(self.path(digest))

    def path(self, digest: Digest) -> Path:
        return self.blobs / digest.hex()

    def _extent(self, path: Path) -> Extent | None:
        try:
            # O_NONBLOCK: a FIFO of that name must not hang us.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise os_failure(error, f"{self._name}: cannot read {path.name}") from error
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise CorruptError(f"{self._name}: {path.name} is not a regular file")
        return Extent(descriptor, 0, status.st_size, f"{self._name}: {path.name}", owner=True)


class LayoutStore(LayoutReader):
    """The layout in the directory `root`, made by the first thing that is put into it.

    With `undo`, closing it takes back what was put since the last tag was (`uncommitted`), so that a writer that fails leaves
    nothing; without, it holds nothing open.
    """

    def __init__(self, root: Path, *, durable: bool = True, undo: bool = False, name: str | None = None) -> None:
        """`durable` False leaves out every fsync, for layouts that do not outlive the process; `name` is for messages."""
        called = name or f"oci:{root}"
        self.root = root
        self._directory = _Directory(root, called)
        self._durable = durable
        self._uncommitted = Uncommitted(self._directory.blobs, undo=undo)
        super().__init__(called, self._directory)

    def blob_path(self, digest: Digest) -> Path:
        """Where the blob's file is, or would be."""
        return self._directory.path(digest)

    def put_blob(self, blob: Descriptor, data: BinaryIO) -> bool:
        """See `ImageStore`. The blob's bytes are on the disk when this returns, its name when a tag is put."""
        with self._writing(f"blob {to_text(blob.digest)}"):
            self._prepare()
            if self._holds(blob):
                return False
            checker = Checker(blob, "its source")
            path = self._directory.path(blob.digest)
            with self._publish(path) as file:
                if blob.size == 0:
                    checker.update(b"")
                while piece := _read(data, BLOCK):
                    checker.update(piece)
                    file.write(piece)
                if checker.left:
                    raise checker.error(f"it ends {checker.left} bytes before the size in its descriptor")
            self._uncommitted.added(path)
        return True

    def put_data(self, data: bytes) -> Digest:
        """See `NamingStore`; the rest as `put_blob` has it."""
        digest = sha256(data)
        with self._writing(f"blob {to_text(digest)}"):
            self._prepare()
            if not self._holds(Descriptor("", digest, len(data))):
                path = self._directory.path(digest)
                with self._publish(path) as file:
                    file.write(data)
                self._uncommitted.added(path)
        return digest

    def put_made(self, write: Callable[[int], Digest]) -> tuple[Digest, bool]:
        """See `NamingStore`; the rest as `put_blob` has it."""
        with self._writing("a blob"):
            self._prepare()
            with self._unpublished(self._directory.blobs / "unnamed") as (file, temporary):
                digest = write(file.fileno())
                path = self._directory.path(digest)
                if self._holds(Descriptor("", digest, os.fstat(file.fileno()).st_size)):
                    os.unlink(temporary)
                    return digest, False
                self._finish(file)
                os.rename(temporary, path)
            self._uncommitted.added(path)
        return digest, True

    def put_manifest(self, manifest: Descriptor, data: bytes, tag: str | None) -> None:
        """See `ImageStore`."""
        what = f"manifest {to_text(manifest.digest)}"
        if tag is not None:
            layoutindex.check_tag(tag, self.name)
        if sha256(data) != manifest.digest or len(data) != manifest.size:
            raise CorruptError(f"{self.name}: the data of {what} is not what its descriptor says")
        if len(data) > LOCAL_MANIFEST_MAX:
            raise InvalidError(f"{self.name}: {what} would have {len(data)} bytes, at most {LOCAL_MANIFEST_MAX} are read")
        with self._writing(what):
            self._prepare()
            if not self._holds(manifest):
                path = self._directory.path(manifest.digest)
                with self._publish(path) as file:
                    file.write(data)
                self._uncommitted.added(path)
            if tag is None:
                return
            self._sync(self._directory.blobs)
            with self._locked():
                index = layoutindex.with_tag(self.index(), manifest, tag, self.name)
                with self._publish(self.root / "index.json") as file:
                    file.write(canonical_json(index))
                self._sync(self.root)
            self._uncommitted.committed()

    def close(self) -> None:
        """See `ImageStore`."""
        self._uncommitted.end()

    def _holds(self, blob: Descriptor) -> bool:
        extent = self._files.blob(blob.digest)
        if extent is None:
            return False
        with extent:
            return extent.size == blob.size

    def _prepare(self) -> None:
        layout, index, blobs = self.root / "oci-layout", self.root / "index.json", self._directory.blobs
        if layout.exists() and index.exists() and blobs.is_dir():
            self._uncommitted.claim()
            return
        if not self.root.exists():
            self._uncommitted.made(self.root)
        self.root.mkdir(parents=True, exist_ok=True)
        with self._locked():
            if not layout.exists() and any(self.root.iterdir()):
                raise InvalidError(f"{self.root} is neither empty nor an OCI image layout; name another directory")
            for path, content in ((layout, layoutindex.LAYOUT_FILE), (index, canonical_json(layoutindex.empty()))):
                if not path.exists():
                    with self._publish(path) as file:
                        file.write(content)
                    self._uncommitted.made(path)
            self._uncommitted.made(*(path for path in (blobs.parent, blobs) if not path.exists()))
            blobs.mkdir(parents=True, exist_ok=True)
            self._sync(blobs.parent)
            self._sync(self.root.parent)
        self._uncommitted.claim()

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise os_failure(error, f"{self.name}: cannot write {what}") from error

    @contextmanager
    def _publish(self, path: Path) -> Iterator[BinaryIO]:
        """A file that gets the name `path` when the block ends well, and none at all otherwise."""
        with self._unpublished(path) as (file, temporary):
            yield file
            self._finish(file)
            os.rename(temporary, path)

    @contextmanager
    def _unpublished(self, path: Path) -> Iterator[tuple[BinaryIO, Path]]:
        """A file beside `path` under a name of its own, which is gone if the block does not end well."""
        temporary = path.with_name(f".{path.name[:16]}.{secrets.token_hex(8)}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            with open(descriptor, "wb") as file:
                yield file, temporary
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise

    def _finish(self, file: BinaryIO) -> None:
        """Bring what was written to the disk."""
        file.flush()
        if self._durable:
            os.fsync(file.fileno())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _sync(self, directory: Path) -> None:
        if self._durable:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def os_failure(error: OSError, what: str) -> PuzzlefsError:
    """The category of `error`: refused for good (rights, no directory), or worth another try (no space, I/O)."""
    message = f"{what}: {error.strerror or error}"
    return InvalidError(message) if error.errno in _FOR_GOOD else UnavailableError(message)


def _read(data: BinaryIO, size: int) -> bytes:
    """The next bytes of a source; what goes wrong there is not the layout's failure."""
    try:
        return data.read(size)
    except OSError as error:
        raise UnavailableError(f"cannot read the data to be stored: {error.strerror or error}") from error
