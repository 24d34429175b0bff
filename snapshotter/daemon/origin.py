"""Where an image came from, as far as its client, containerd and the image itself say it.

The client may name the reference that is pulled (CRI and `puzzlefs pull` do). Where it does not, containerd knows what this
node pulled: a manifest in its content store carries a label for every repository that it came from, but without the registry's
port (``core/remotes/docker/handler.go``), which is then looked for where the same host stands with one. What the image says
itself is a hint, and comes last: it may have been copied since.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from snapshotter.daemon.sources import LayerSource
from snapshotter.errors import InvalidError, PuzzlefsError
from snapshotter.format.annotations import MetadataLayer
from snapshotter.format.digest import Digest, to_text
from snapshotter.registry import reference as references
from snapshotter.registry.reference import Reference

SOURCE_LABEL = "containerd.io/distribution.source."
"""Before a registry's host, on content that was pulled from there; the value lists repositories, separated by commas."""
LAYERS_MAX = 128
"""Most layers of an image whose label on the manifest is looked for."""
IMAGES_MAX = 8
"""Most references that are taken from labels."""

_PLAIN_HOST = re.compile(r"[a-zA-Z0-9.-]+\Z|\[?[0-9a-fA-F:]+\]?\Z")

_log = logging.getLogger(__name__)


class Content(Protocol):
    """What is asked of containerd (`contentstore.ContentStore`). All raise UnavailableError where it does not answer."""

    def size(self, digest: Digest) -> int | None:
        """The size of a blob, None where it is not there."""
        ...

    def labels(self, filters: Sequence[str]) -> Iterable[Mapping[str, str]]:
        """The labels of the content that one of the filters matches."""
        ...

    def image_names(self) -> Sequence[str]:
        """The names of all images."""
        ...


class Origins:
    """Finds the source of a layer. `content` gives containerd's in a namespace, None where it is not asked; `ports` gives the
    hosts that an administrator has settings for, with their ports, for a host's name."""

    def __init__(self, content: Callable[[str], Content | None], ports: Callable[[str], Iterable[str]]) -> None:
        self._content = content
        self._ports = ports

    def find(self, layer: MetadataLayer, image: str | None, namespace: str) -> LayerSource:
        """Where `layer` can be read that is asked for in `namespace` as part of `image`. Never raises: containerd that does not
        answer knows nothing."""
        said = [image] if image is not None and image != layer.source else []
        namespaces: tuple[str, ...] = ()
        content = self._content(namespace)
        if content is not None:
            try:
                if self._is_there(content, layer):
                    namespaces = (namespace,)
                if not said:
                    said = self._pulled_from(content, layer)
            except PuzzlefsError as error:
                _log.warning("where layer %s came from: %s", to_text(layer.diff_id), error)
        hint = [layer.source] if layer.source is not None else []
        return LayerSource(
            layer.packs,
            tuple(dict.fromkeys([*said, *hint])),
            to_text(layer.diff_id),
            namespaces,
            layer.profile,
            background=layer.background,
        )

    def _is_there(self, content: Content, layer: MetadataLayer) -> bool:
        """Whether the image was loaded or pulled whole: then its metadata is there, or at least the first pack."""
        return any(content.size(digest) is not None for digest in (layer.metadata, *(place.pack for place in layer.packs[:1])))

    def _pulled_from(self, content: Content, layer: MetadataLayer) -> list[str]:
        digest = to_text(layer.metadata)
        # How the manifest refers to its layers (``images.ChildGCLabels``): the number is the layer's, which nobody tells us.
        filters = [f'labels."containerd.io/gc.ref.content.l.{number}"=={digest}' for number in range(LAYERS_MAX)]
        manifests = [labels for labels in content.labels(filters) if any(key.startswith(SOURCE_LABEL) for key in labels)]
        if not manifests:
            return []
        hint = _parsed(layer.source)
        found = {source: None for labels in manifests for source in pulled_from(labels)}
        names = content.image_names()
        full = (with_port(host, repository, hint, names, self._ports(host)) for host, repository in found)
        return list(dict.fromkeys(reference for each in full for reference in each))[:IMAGES_MAX]


def pulled_from(labels: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Host (without port) and repository of every place that `labels` name."""
    for key, value in labels.items():
        host = key.removeprefix(SOURCE_LABEL)
        if host != key and _PLAIN_HOST.match(host):
            for repository in value.split(","):
                if _parsed(f"{host}:0/{repository}") is not None:
                    yield host, repository


def with_port(host: str, repository: str, hint: Reference | None, images: Iterable[str], hosts: Iterable[str]) -> Iterator[str]:
    """The references that ``host/repository`` may mean, the likeliest first.

    Pure. `hint` is what the image says of itself, `images` are the names of containerd's image records, `hosts` those that an
    administrator has settings for. Where none of them has the host with a port, it is the host as it stands.
    """
    known = [image for image in ([hint] if hint is not None else []) if _name(image.host) == host]
    records = [parsed for image in images if (parsed := _parsed(image)) is not None and _name(parsed.host) == host]
    candidates = [one.host for one in records if one.repository == repository]
    candidates += [one.host for one in known]
    candidates += [one.host for one in records] + list(hosts)
    for candidate in dict.fromkeys(candidates or [host]):
        yield f"{candidate}/{repository}"


def _name(host: str) -> str:
    """`host` without its port."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def _parsed(image: str | None) -> Reference | None:
    try:
        return references.parse(image) if image is not None else None
    except InvalidError:
        return None
