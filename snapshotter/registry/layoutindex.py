"""The ``index.json`` of an OCI layout: what its tags mean, and how one is set. Pure (image specification, image-layout.md)."""

from __future__ import annotations

import re
from typing import Any

from snapshotter.errors import CorruptError, InvalidError, NotFoundError
from snapshotter.format.digest import from_text, to_text
from snapshotter.registry.base import Descriptor
from snapshotter.registry.documents import descriptor_from_json, descriptor_to_json

REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"
"""Where containerd's exporter (``ctr images export``, ``nerdctl save``) writes the full reference, besides REF_NAME."""

LAYOUT_FILE = b'{"imageLayoutVersion":"1.0.0"}'
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@/+-]{0,254}\Z")


def empty() -> dict[str, Any]:
    """The index of a layout without images."""
    return {"schemaVersion": 2, "manifests": []}


def check_tag(tag: str, place: str) -> None:
    """Raises InvalidError unless `tag` may name an image in a layout (the annotation takes whole references too)."""
    if not _TAG.match(tag) or tag.startswith("sha256:"):
        raise InvalidError(f"{place}: {tag[:140]!r} is not a tag: letters, digits and any of _.:@/+- within")


def entries(index: dict[str, Any], place: str) -> list[Descriptor]:
    """The descriptors of `index`, in its order.

    Raises:
        CorruptError: it is no list of descriptors.
    """
    listed = index.get("manifests")
    if not isinstance(listed, list):
        raise CorruptError(f"{place}: index.json has no list of manifests")
    return [descriptor_from_json(entry, f"{place}: index.json") for entry in listed]


def find(index: dict[str, Any], reference: str, place: str) -> Descriptor:
    """The entry for `reference`: a digest, a tag, or a whole reference that containerd's exporter wrote.

    A digest that the index does not list gives a descriptor of size -1 and no media type: it may be an index's child.

    Raises:
        NotFoundError: no image has that tag. CorruptError: the index is broken.
    """
    known = entries(index, place)
    if reference.startswith("sha256:"):
        digest = from_text(reference)
        return next((entry for entry in known if entry.digest == digest), Descriptor("", digest, -1))
    for key in (REF_NAME, CONTAINERD_NAME):
        named = [entry for entry in known if entry.annotations.get(key) == reference]
        if len({entry.digest for entry in named}) > 1:
            raise CorruptError(f"{place}: several images have the tag {reference!r}; name one by its digest")
        if named:
            return named[0]
    there = tags(index, place)
    hint = f"its tags are {', '.join(there[:10])}{', …' if len(there) > 10 else ''}" if there else "it has no tags"
    raise NotFoundError(f"{place} has no image {reference[:140]!r}; {hint}")


def only(index: dict[str, Any], place: str) -> str:
    """The digest, as text, of the one image in the layout: what ``oci:DIR`` means.

    Raises:
        InvalidError: there is none, or more than one. CorruptError: the index is broken.
    """
    digests = sorted({to_text(entry.digest) for entry in entries(index, place)})
    if len(digests) != 1:
        there = ", ".join(tags(index, place)[:10]) or "none"
        raise InvalidError(f"{place} holds {len(digests)} images; name one by its tag (there are: {there})")
    return digests[0]


def tags(index: dict[str, Any], place: str) -> list[str]:
    """The tags, in the order of the index, each once."""
    return list(dict.fromkeys(tag for entry in entries(index, place) if (tag := entry.annotations.get(REF_NAME)) is not None))


def with_tag(index: dict[str, Any], manifest: Descriptor, tag: str, place: str) -> dict[str, Any]:
    """`index` with `tag` on `manifest`: the entry that had it goes, the new one is the last; all else stays as it was."""
    old = entries(index, place)
    kept = [entry for entry, known in zip(index["manifests"], old, strict=True) if known.annotations.get(REF_NAME) != tag]
    new = descriptor_to_json(manifest)
    new["annotations"] = {**manifest.annotations, REF_NAME: tag}
    return {**index, "manifests": [*kept, new]}
