"""`ImageStore` over an OCI archive: a tar file of an OCI layout (skopeo's ``oci-archive:``).

Reading goes by an index of the tar's members, without unpacking; writing gathers a layout beside the file and publishes the
archive when it is closed. Equal images make equal archives.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from snapshotter.errors import CorruptError, InvalidError, NotFoundError
from snapshotter.format.digest import Digest
from snapshotter.registry.base import MANIFEST_MAX, Descriptor
from snapshotter.registry.extent import Extent, exactly
from snapshotter.registry.layout import LayoutStore, os_failure
from snapshotter.registry.layoutreader import LayoutReader

MEMBERS_MAX = 1 << 20
"""Most members of an archive that is read."""

PAX_MAX = 1 << 20
"""Largest extended header of a member that is read, in bytes."""

_BLOCK = 512
_BLOB = re.compile(r"blobs/sha256/([0-9a-f]{64})\Z")
_DOCUMENTS = ("oci-layout", "index.json")
_EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_RECORD = re.compile(rb"(\d{1,7}) ([^=]{1,255})=")
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}


class ArchiveReader(LayoutReader):
    """The archive in the file `path`, which is opened at first use and stays open until `close`. Nothing can be put into it."""

    def __init__(self, path: Path) -> None:
        self._archive = _Members(path)
        super().__init__(self._archive.name, self._archive)

    def put_blob(self, blob: Descriptor, data: BinaryIO) -> bool:
        """See `ImageStore`: refused."""
        raise InvalidError(f"{self.name} is open for reading")

    def put_manifest(self, manifest: Descriptor, data: bytes, tag: str | None) -> None:
        """See `ImageStore`: refused."""
        raise InvalidError(f"{self.name} is open for reading")

    def close(self) -> None:
        """See `ImageStore`."""
        self._archive.close()


class _Members:
    """`Files` in a tar file."""

    def __init__(self, path: Path) -> None:
        self.name = f"oci-archive:{path}"
        self._path = path
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._members: dict[str | Digest, tuple[int, int]] = {}

    def document(self, name: str) -> bytes:
        extent = self._extent(name)
        if extent is None:
            raise NotFoundError(f"{self.name} is not an OCI archive: it has no {name}")
        return exactly(extent, 0, min(extent.size, MANIFEST_MAX + 1), f"{self.name}: {name}")

    def blob(self, digest: Digest) -> Extent | None:
        return self._extent(digest)

    def close(self) -> None:
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
            self._descriptor = None

    def _extent(self, key: str | Digest) -> Extent | None:
        with self._lock:
            if self._descriptor is None:
                self._open()
            assert self._descriptor is not None  # noqa: S101 (for the type checker)
            place = self._members.get(key)
            return None if place is None else Extent(self._descriptor, *place, self.name, owner=False)

    def _open(self) -> None:
        try:
            with open(self._path, "rb", buffering=0) as file:
                self._members = scan(file, self.name)
                self._descriptor = os.dup(file.fileno())
        except FileNotFoundError:
            raise NotFoundError(f"{self.name}: there is no such file") from None
        except OSError as error:
            raise os_failure(error, f"{self.name}: cannot read it") from error


def scan(file: BinaryIO, name: str) -> dict[str | Digest, tuple[int, int]]:
    """Where (offset, size) in the tar `file` the layout's documents and blobs lie; of equal names the last counts, as in tar.

    Only the headers are read. `name` is for messages.

    Raises:
        InvalidError: the file is compressed. CorruptError: it is not a sound tar file. OSError: it cannot be read.
    """
    end = file.seek(0, os.SEEK_END)
    members: dict[str | Digest, tuple[int, int]] = {}
    extended: dict[str, str] = {}
    at = 0
    for _ in range(MEMBERS_MAX):
        header = _at(file, at, _BLOCK)
        if at == 0:
            _refuse_compressed(header, name)
        if header == bytes(_BLOCK) or (0 < at == end):
            return members
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise CorruptError(f"{name} is not a tar file, or is damaged at byte {at}") from error
        is_header = info.type in _EXTENDED
        size = info.size if is_header or "size" not in extended else int(extended["size"])
        start = at + _BLOCK
        if size < 0 or start + size > end:
            raise CorruptError(f"{name}: the member at byte {at} reaches beyond the end of the file; is it complete?")
        at = start + -(-size // _BLOCK) * _BLOCK
        if is_header:
            if size > PAX_MAX:
                raise CorruptError(f"{name}: an extended header of {size} bytes")
            if info.type == tarfile.GNUTYPE_LONGNAME:
                extended["path"] = _text(_at(file, start, size))
            elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                extended |= _pax(_at(file, start, size), name)
            continue
        path = extended.get("path", info.name).removeprefix("./")
        extended = {}
        if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
            match = _BLOB.match(path)
            if match:
                members[Digest(bytes.fromhex(match[1]))] = (start, size)
            elif path in _DOCUMENTS:
                members[path] = (start, size)
    raise CorruptError(f"{name} has more than {MEMBERS_MAX} members, the most that is read")


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = bytearray()
    while len(data) < size and (piece := file.read(size - len(data))):
        data += piece
    return bytes(data)


def _refuse_compressed(header: bytes, name: str) -> None:
    for magic, kind in _COMPRESSIONS.items():
        if header.startswith(magic):
            raise InvalidError(f"{name} is compressed with {kind}, and is read by random access; decompress it first")


def _text(content: bytes) -> str:
    return content.rstrip(b"\0").decode("utf-8", "surrogateescape")


def _pax(content: bytes, name: str) -> dict[str, str]:
    """The records ``path`` and ``size`` of an extended header (POSIX pax: ``LENGTH KEY=VALUE\\n``)."""
    found: dict[str, str] = {}
    at = 0
    while at < len(content) and content[at] != 0:
        match = _RECORD.match(content, at)
        if match is None or int(match[1]) <= match.end() - at or at + int(match[1]) > len(content):
            raise CorruptError(f"{name}: a damaged extended header")
        key, value = match[2], content[match.end() : at + int(match[1]) - 1]
        if key == b"path" or (key == b"size" and re.fullmatch(rb"\d{1,18}", value)):
            found[key.decode()] = value.decode("utf-8", "surrogateescape")
        at += int(match[1])
    return found


class ArchiveWriter:
    """A new archive, which gets its name `path` (replacing what has it) when it is closed, if an image was tagged by then.

    Everything is gathered in a directory beside the file, so that file system needs room for the image twice.
    """

    def __init__(self, path: Path) -> None:
        """Nothing is written before something is put.

        Raises:
            InvalidError: `path` is a directory, or lies in none.
        """
        if path.is_dir() or not path.parent.is_dir():
            raise InvalidError(
                f"oci-archive:{path}: {'that is a directory' if path.is_dir() else f'there is no {path.parent}'}"
            )
        self._path = path
        self._lock = threading.Lock()
        self._layout: LayoutStore | None = None
        self._tagged = False
        self._closed = False

    @property
    def name(self) -> str:
        """See `ImageStore`."""
        return f"oci-archive:{self._path}"

    def manifest(self, reference: str) -> tuple[Descriptor, bytes]:
        """See `ImageStore`: of what was put."""
        return self._staged().manifest(reference)

    def open_blob(self, blob: Descriptor) -> BinaryIO:
        """See `ImageStore`."""
        return self._staged().open_blob(blob)

    def read_range(self, digest: Digest, offset: int, length: int) -> bytes:
        """See `ImageStore`."""
        return self._staged().read_range(digest, offset, length)

    def has_blob(self, digest: Digest) -> bool:
        """See `ImageStore`."""
        return self._layout is not None and self._layout.has_blob(digest)

    def put_blob(self, blob: Descriptor, data: BinaryIO) -> bool:
        """See `ImageStore`."""
        return self._staged(make=True).put_blob(blob, data)

    def put_data(self, data: bytes) -> Digest:
        """See `NamingStore`."""
        return self._staged(make=True).put_data(data)

    def put_made(self, write: Callable[[int], Digest]) -> tuple[Digest, bool]:
        """See `NamingStore`."""
        return self._staged(make=True).put_made(write)

    def put_manifest(self, manifest: Descriptor, data: bytes, tag: str | None) -> None:
        """See `ImageStore`."""
        self._staged(make=True).put_manifest(manifest, data, tag)
        self._tagged = self._tagged or tag is not None

    def tags(self) -> Iterator[str]:
        """See `ImageStore`."""
        return iter(()) if self._layout is None else self._layout.tags()

    def close(self) -> None:
        """Write the archive, or nothing if no image was tagged; remove what was gathered.

        Raises:
            UnavailableError, InvalidError: it cannot be written; what was at `path` is still there.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            layout = self._layout
        if layout is None:
            return
        try:
            if self._tagged:
                self._write(layout.root)
        except OSError as error:
            raise os_failure(error, f"{self.name}: cannot write it") from error
        finally:
            shutil.rmtree(layout.root, ignore_errors=True)

    def _staged(self, *, make: bool = False) -> LayoutStore:
        with self._lock:
            if self._closed:
                raise InvalidError(f"{self.name} is closed")
            if self._layout is None:
                if not make:
                    raise NotFoundError(f"{self.name} is empty")
                try:
                    root = tempfile.mkdtemp(prefix=f".{self._path.name[:64]}.", suffix=".tmp", dir=self._path.parent)
                except OSError as error:
                    raise os_failure(error, f"{self.name}: cannot write to {self._path.parent}") from error
                self._layout = LayoutStore(Path(root), durable=False, name=self.name)
            return self._layout

    def _write(self, root: Path) -> None:
        temporary = self._path.with_name(f".{self._path.name[:64]}.{secrets.token_hex(8)}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            with open(descriptor, "wb") as file:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
                    for name in (
                        *_DOCUMENTS,
                        "blobs",
                        "blobs/sha256",
                        *sorted(f"blobs/sha256/{n}" for n in os.listdir(root / "blobs/sha256")),
                    ):
                        _add(archive, root, name)
                file.flush()
                os.fsync(descriptor)
            os.rename(temporary, self._path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _add(archive: tarfile.TarFile, root: Path, name: str) -> None:
    """Add one member; owner, times and mode are fixed, so that equal layouts give equal archives."""
    path = root / name
    info = tarfile.TarInfo(name)
    if path.is_dir():
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(info)
        return
    with open(path, "rb") as file:
        info.size = os.fstat(file.fileno()).st_size
        archive.addfile(info, file)
