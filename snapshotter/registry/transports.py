"""Where an image is, in skopeo's notation: ``docker://HOST/REPOSITORY:TAG``, ``oci:DIR:TAG``, ``oci-archive:FILE[:TAG]``.

`parse` says what a text means, without touching anything; `open_source` and `open_destination` make an `ImageStore` of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from snapshotter.errors import InvalidError
from snapshotter.registry import layoutindex, reference
from snapshotter.registry.base import ImageStore
from snapshotter.registry.layout import LayoutStore
from snapshotter.registry.reference import DEFAULT_TAG, Reference

_FORMS = "docker://HOST/REPOSITORY:TAG, oci:DIR:TAG or oci-archive:FILE:TAG"
_OTHERS = ("containers-storage", "dir", "docker-archive", "docker-daemon", "ostree", "sif", "tarball")


@dataclass(frozen=True, slots=True)
class DockerLocation:
    """An image in a registry."""

    reference: Reference

    def __str__(self) -> str:
        return f"docker://{self.reference.canonical}"


@dataclass(frozen=True, slots=True)
class LayoutLocation:
    """An image in an OCI layout directory; without `tag`, the only one there."""

    directory: Path
    tag: str | None = None

    def __str__(self) -> str:
        return f"oci:{self.directory}" + (f":{self.tag}" if self.tag else "")


@dataclass(frozen=True, slots=True)
class ArchiveLocation:
    """An image in an OCI archive; without `tag`, the only one there."""

    file: Path
    tag: str | None = None

    def __str__(self) -> str:
        return f"oci-archive:{self.file}" + (f":{self.tag}" if self.tag else "")


Location = DockerLocation | LayoutLocation | ArchiveLocation


class RepositoryOpener(Protocol):
    """What opens repositories of registries (`registries.Registries`)."""

    def open(self, reference: Reference, /) -> ImageStore:
        """The repository of `reference`."""
        ...


class Opened(NamedTuple):
    """A place, and what to ask it for: a tag, or a digest in text form."""

    store: ImageStore
    reference: str


def parse(text: str) -> Location:
    """The location that `text` is.

    Raises:
        InvalidError: it is none, or of a transport that we do not have.
    """
    transport, colon, rest = text.partition(":")
    if colon and transport == "docker":
        if not rest.startswith("//"):
            raise InvalidError(f"not an image location: {text[:200]!r}: after docker: comes //, as in docker://debian:12")
        return DockerLocation(reference.parse(rest[2:]))
    if colon and transport == "oci":
        return LayoutLocation(*_path_and_tag(rest, text, "oci:DIR:TAG"))
    if colon and transport == "oci-archive":
        return ArchiveLocation(*_path_and_tag(rest, text, "oci-archive:FILE:TAG"))
    if colon and transport in _OTHERS:
        raise InvalidError(
            f"{text[:200]!r}: there is no transport {transport}: here; skopeo copy can make an oci-archive: of it"
        )
    raise InvalidError(f"not an image location: {text[:200]!r} names no transport (expected {_FORMS})")


def parse_any(text: str) -> Location:
    """What `parse` takes, and without a transport also ``OCI_DIR:TAG`` and ``HOST/REPOSITORY:TAG``.

    It is a registry's where the first part looks like a host (a dot, a port, ``localhost``) and no such directory exists.

    Raises:
        InvalidError: it is none of these.
    """
    head, colon, rest = text.partition(":")
    if colon and (head in ("docker", "oci", "oci-archive", *_OTHERS) or rest.startswith("//")):
        return parse(text)
    host, slash, _ = text.partition("/")
    is_host = "." in host.strip(".") or ":" in host or host == "localhost"
    if slash and is_host and not Path(head).is_dir():
        return DockerLocation(reference.parse(text))
    return parse_layout(text)


def parse_layout(text: str) -> LayoutLocation:
    """The location that ``OCI_DIR:TAG`` is, as upstream's commands take it; ``oci:`` before it does no harm.

    Raises:
        InvalidError: it is none.
    """
    location = LayoutLocation(*_path_and_tag(text.removeprefix("oci:"), text, "OCI_DIR:TAG"))
    if location.tag is None:
        raise InvalidError(f"not an image in an OCI layout: {text[:200]!r} has no tag (expected OCI_DIR:TAG)")
    return location


def open_source(location: Location, registries: RepositoryOpener) -> Opened:
    """The place of an image that is to be read, and the image in it.

    Raises:
        InvalidError: no tag is given and the place holds several images.
        NotFoundError, CorruptError: it is no layout, or broken.
    """
    if isinstance(location, DockerLocation):
        return Opened(registries.open(location.reference), location.reference.selector)
    if isinstance(location, LayoutLocation):
        layout = LayoutStore(location.directory)
        return Opened(layout, location.tag or layout.only_image())
    from snapshotter.registry.archive import ArchiveReader

    archive = ArchiveReader(location.file)
    try:
        return Opened(archive, location.tag or archive.only_image())
    except BaseException:
        archive.close()
        raise


def open_destination(location: Location, registries: RepositoryOpener) -> Opened:
    """The place where an image is to be put, and its tag there. An archive is a new one, and is written when it is closed; of a
    layout, closing it takes back what was put if the tag was not.

    Raises:
        InvalidError: nothing can be put there: a digest instead of a tag, no tag for a layout, no directory for an archive.
    """
    if isinstance(location, DockerLocation):
        if location.reference.digest is not None:
            raise InvalidError(f"{location}: an image cannot be put under a digest; name a tag")
        return Opened(registries.open(location.reference), location.reference.selector)
    if isinstance(location, LayoutLocation):
        if location.tag is None:
            raise InvalidError(f"{location}: name the tag that the image shall have (oci:DIR:TAG)")
        layoutindex.check_tag(location.tag, str(location))
        return Opened(LayoutStore(location.directory, undo=True), location.tag)
    tag = location.tag or DEFAULT_TAG
    layoutindex.check_tag(tag, str(location))
    from snapshotter.registry.archive import ArchiveWriter

    return Opened(ArchiveWriter(location.file), tag)


def _path_and_tag(rest: str, text: str, form: str) -> tuple[Path, str | None]:
    # At the first colon, as skopeo: a path cannot have one, while the name of an image may be a whole reference.
    path, colon, tag = rest.partition(":")
    if not path or "\0" in path or (colon and not tag):
        raise InvalidError(f"not an image location: {text[:200]!r} (expected {form}; the path has no colon)")
    return Path(path), tag or None
