"""Image references as docker and containerd write them: ``[host[:port]/]repository[:tag][@digest]``.

The grammar and the defaults (docker.io, ``library/``) are those of the module ``distribution/reference``, which containerd,
docker, podman and nerdctl share. Everything here is pure; a reference may come from anywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from snapshotter.errors import InvalidError
from snapshotter.format.digest import Digest, from_text, to_text

DEFAULT_HOST = "docker.io"
DEFAULT_TAG = "latest"
_OFFICIAL = "library/"
_LEGACY_HOSTS = frozenset({"index.docker.io"})

NAME_MAX = 255
"""Longest host and repository together, with the slash between them."""

TEXT_MAX = NAME_MAX + 1 + 128 + 1 + 71
"""Longest reference: name, tag and digest with their separators."""

_HOST = re.compile(
    r"(?:(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*"
    r"|\[[a-fA-F0-9:]+\])(?::[0-9]{1,5})?\Z"
)
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_HEX_ID = re.compile(r"[0-9a-f]{64}\Z")


def is_tag(text: str) -> bool:
    """Whether `text` can be a tag (distribution specification, "Pulling manifests")."""
    return _TAG.match(text) is not None


@dataclass(frozen=True, slots=True)
class Reference:
    """An image in a registry's repository.

    `host` as references show it (``docker.io``, ``registry.example:5000``), which need not be the host that is connected to
    (`hosts.endpoint`). Without `tag` and `digest` it names the repository, and as an image its tag ``latest``.
    """

    host: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    @property
    def name(self) -> str:
        """Host and repository."""
        return f"{self.host}/{self.repository}"

    @property
    def selector(self) -> str:
        """What to ask the repository for: the digest where there is one (it says more), else the tag, else ``latest``."""
        return to_text(self.digest) if self.digest is not None else self.tag or DEFAULT_TAG

    @property
    def canonical(self) -> str:
        """The full form, which containerd's image records have: ``docker.io/library/debian:12``."""
        return self.name + self._suffix()

    def with_default_tag(self) -> Reference:
        """This reference, with the tag ``latest`` if it has neither tag nor digest: what ``pull`` takes it for."""
        return self if self.tag or self.digest is not None else replace(self, tag=DEFAULT_TAG)

    def __str__(self) -> str:
        return self.canonical

    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        return tag + (f"@{to_text(self.digest)}" if self.digest is not None else "")


def parse(text: str) -> Reference:
    """The reference that `text` is, defaults filled in (host and ``library/``, not the tag).

    Raises:
        InvalidError: it is none.
    """
    if not text or len(text) > TEXT_MAX:
        raise _invalid(text, "it is empty" if not text else f"it is longer than {TEXT_MAX} characters")
    name, at, digest_text = text.partition("@")
    digest = None
    if at:
        try:
            digest = from_text(digest_text)
        except InvalidError:
            raise _invalid(text, "what follows @ must be sha256: and 64 lower-case hexadecimal digits") from None
    head, colon, last = name.rpartition(":")
    tag = None
    if colon and "/" not in last:
        name, tag = head, last
        if not is_tag(tag):
            raise _invalid(text, "a tag has 1 to 128 letters, digits, '_', '.' and '-', and begins with none of the last two")
    if _HEX_ID.match(name):
        raise _invalid(text, "64 hexadecimal digits are an image ID, not a repository")
    host, repository = _split_host(name)
    if len(host) + 1 + len(repository) > NAME_MAX:
        raise _invalid(text, f"host and repository are longer than {NAME_MAX} characters")
    if not _HOST.match(host):
        raise _invalid(text, f"{host!r} is not a host name with an optional port")
    if not all(_COMPONENT.match(component) for component in repository.split("/")):
        why = (
            "it must be lower case" if repository != repository.lower() else "letters, digits and single '.', '_', '-' between"
        )
        raise _invalid(text, f"{repository!r} is not a repository name: {why}")
    return Reference(host, repository, tag, digest)


def _split_host(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        first, rest = DEFAULT_HOST, name
    if first in _LEGACY_HOSTS:
        first = DEFAULT_HOST
    if first == DEFAULT_HOST and "/" not in rest:
        rest = _OFFICIAL + rest
    return first, rest


def _invalid(text: str, why: str) -> InvalidError:
    return InvalidError(f"not an image reference: {text[:120]!r}: {why} (expected [HOST[:PORT]/]REPOSITORY[:TAG][@sha256:…])")
