"""Has the kernel's fs-verity protect the files of an image in a layout: from then on none of them can be changed unnoticed.

The order is that of trust: the manifest against the digest that the caller has, the metadata against what the manifest
states, the chunks against what the metadata records. A file is compared before it is sealed, so that a wrong one is not made
unchangeable, and measured after it.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

from snapshotter.build.contents import ManifestOf, manifests
from snapshotter.build.layout import VERITY_ANNOTATION, read_message
from snapshotter.build.progress import Progress, Report, silent
from snapshotter.build.readmessage import pieces
from snapshotter.chunkstore.directory import Sealing
from snapshotter.errors import CorruptError, InvalidError, NotFoundError, UnavailableError, UnsupportedError
from snapshotter.format.digest import Digest, to_text
from snapshotter.format.rootfs import Rootfs
from snapshotter.format.verity import VerityHasher, verity_digest
from snapshotter.registry.layout import LayoutStore
from snapshotter.registry.platforms import Platform

_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL)


@dataclass(slots=True)
class Sealed:
    """What was sealed, or was already. `unrecorded`: chunks whose recorded digest is not theirs, as upstream's builder records
    it for some under compression; these were compared by their names.
    """

    files: int = 0
    bytes: int = 0
    unrecorded: int = 0


def seal_image(
    layout: LayoutStore, reference: str, digest: bytes, sealing: Sealing, platform: Platform, report: Report = silent
) -> Sealed:
    """Seal every file of the image `reference`, whose manifest has the fs-verity digest `digest`.

    Of a local image these are the manifest, the configuration, the metadata, and the chunks of all its layers; of one in our
    form everything that the manifest lists. Files that are sealed stay so.

    Raises:
        NotFoundError: there is no such image, or a file of it is missing. CorruptError: a file is not what it should be.
        InvalidError: it is an index. UnsupportedError: the file system has no fs-verity.
        UnavailableError: a file cannot be read, or somebody has it open for writing.
    """
    (image,) = manifests(layout, reference, platform)
    return _Seal(layout, image, sealing, report).run(digest)


class _Seal:
    def __init__(self, layout: LayoutStore, image: ManifestOf, sealing: Sealing, report: Report) -> None:
        self._layout = layout
        self._image = image
        self._sealing = sealing
        self._report = report
        self._done = Sealed()
        self._zstd = False

    def run(self, digest: bytes) -> Sealed:
        image = self._image
        if (found := verity_digest(image.data)) != digest:
            raise CorruptError(f"the manifest of {image.name} has the fs-verity digest {found.hex()}, not {digest.hex()}")
        expected: dict[Digest, bytes | None] = {layer.digest: None for layer in image.manifest.layers}
        if image.local:
            rootfs = image.manifest.layers[0]
            message = read_message(self._layout, image.descriptor, image.data, image.name)
            expected[rootfs.digest] = _hex(rootfs.annotations.get(VERITY_ANNOTATION), image.name)
            expected |= self._chunks(message.data)
        everything = {image.descriptor.digest: digest, image.manifest.config.digest: None, **expected}
        for number, (name, recorded) in enumerate(everything.items(), 1):
            self._seal(name, recorded)
            self._report(Progress("read", image.name, number, len(everything)))
        return self._done

    def _chunks(self, message: bytes | mmap.mmap) -> dict[Digest, bytes | None]:
        rootfs = Rootfs.open(message)
        try:
            self._zstd = any(chunk.compressed for layer in rootfs.stored() for inode in layer for chunk in inode.chunks)
            return {pair.digest: pair.verity for pair in rootfs.verities()}
        finally:
            rootfs.close()

    def _seal(self, name: Digest, recorded: bytes | None) -> None:
        path = self._layout.blob_path(name)
        what = f"blob {to_text(name)} of {self._layout.name}"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise NotFoundError(f"{self._image.name}: {what} is missing") from None
        except OSError as error:
            raise UnavailableError(f"{what}: {error.strerror}") from None
        try:
            self._seal_file(descriptor, path, name, recorded, what)
        finally:
            os.close(descriptor)

    def _seal_file(self, descriptor: int, path: Path, name: Digest, recorded: bytes | None, what: str) -> None:
        try:
            measured = self._sealing.measure(descriptor)
            if measured is None or measured != recorded:
                found, actual = _digests(path)
                if found != name:
                    raise CorruptError(f"{what} is corrupt: its content has the digest {to_text(found)}")
                if recorded not in (None, actual):
                    if not self._zstd:
                        raise CorruptError(f"{what} has the fs-verity digest {actual.hex()}, the image records another one")
                    self._done.unrecorded += 1
                self._sealing.enable(descriptor)
                measured = self._sealing.measure(descriptor)
                if measured != actual:
                    raise CorruptError(f"{what} is measured as {measured.hex() if measured else None}, not {actual.hex()}")
            self._done.files += 1
            self._done.bytes += os.fstat(descriptor).st_size
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                raise UnsupportedError(
                    f"the file system of {self._layout.root} has no fs-verity: use ext4 (made or tuned with -O verity), btrfs"
                    " or f2fs on a kernel with CONFIG_FS_VERITY"
                ) from None
            raise UnavailableError(f"{what} cannot be sealed: {error.strerror}") from None


def _digests(path: Path) -> tuple[Digest, bytes]:
    """The digest and the fs-verity digest of a file."""
    name, verity = hashlib.sha256(), VerityHasher()
    with path.open("rb") as file:
        for piece in pieces(file):
            name.update(piece)
            verity.update(piece)
    return Digest(name.digest()), verity.digest()


def _hex(text: str | None, name: str) -> bytes | None:
    """A digest of fs-verity as an annotation has it."""
    try:
        return None if text is None else bytes.fromhex(text)
    except ValueError:
        raise InvalidError(f"{name}: its annotation states no fs-verity digest: {text!r}") from None
