"""The JSON documents of images: descriptors, media types, and the canonical form in which we write.

Pure functions between bytes and values. What is parsed here is hostile: documents are bounded, numbers are checked, and a
document that could be read as two kinds is refused (distribution specification, CVE-2021-41190).
"""

from __future__ import annotations

import json
import re
from typing import Any

from snapshotter.errors import CorruptError, InvalidError, UnsupportedError
from snapshotter.format.digest import from_text, to_text
from snapshotter.registry.base import MANIFEST_MAX, Descriptor

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST_TYPES = (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST)
"""The manifests that we read, in the order of preference in which a registry is asked for them."""

BLOB_SIZE_MAX = 1 << 40
"""Largest size that a descriptor may state, in bytes."""

_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}\Z")
_SCHEMA_1 = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)


def canonical_json(document: object) -> bytes:
    """`document` with keys sorted, no white space, non-ASCII as it is: equal documents are equal bytes."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def parse_object(data: bytes, what: str, limit: int = MANIFEST_MAX) -> dict[str, Any]:
    """The JSON object that `data` is; `what` names it in messages.

    Raises:
        CorruptError: it is larger than `limit` bytes, or none.
    """
    if len(data) > limit:
        raise CorruptError(f"{what} is larger than {limit} bytes, the most that is read")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{what} is not valid JSON: {type(error).__name__}") from error
    if not isinstance(document, dict):
        raise CorruptError(f"{what} is not a JSON object")
    return document


def descriptor_from_json(value: object, what: str) -> Descriptor:
    """The descriptor that the JSON object `value` is; `what` names the document that it stands in.

    Raises:
        CorruptError: it is none.
    """
    if not isinstance(value, dict):
        raise CorruptError(f"{what}: a descriptor is not an object")
    media_type, digest, size = value.get("mediaType"), value.get("digest"), value.get("size")
    annotations, platform = value.get("annotations"), value.get("platform")
    if not isinstance(media_type, str) or not _MEDIA_TYPE.match(media_type):
        raise CorruptError(f"{what}: a descriptor without a valid mediaType")
    if not isinstance(digest, str):
        raise CorruptError(f"{what}: a descriptor without a digest")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= BLOB_SIZE_MAX:
        raise CorruptError(f"{what}: the descriptor of {digest[:80]} has no valid size")
    if annotations is not None and not (
        isinstance(annotations, dict) and all(isinstance(text, str) for text in annotations.values())
    ):
        raise CorruptError(f"{what}: the annotations of {digest[:80]} are not all text")
    if platform is not None and not isinstance(platform, dict):
        raise CorruptError(f"{what}: the platform of {digest[:80]} is not an object")
    try:
        return Descriptor(media_type, from_text(digest), size, annotations or {}, platform)
    except InvalidError as error:
        raise CorruptError(f"{what}: {error}") from error


def descriptor_to_json(descriptor: Descriptor) -> dict[str, Any]:
    """`descriptor` as a JSON object; empty annotations and an absent platform are left out."""
    value: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": to_text(descriptor.digest),
        "size": descriptor.size,
    }
    if descriptor.annotations:
        value["annotations"] = dict(descriptor.annotations)
    if descriptor.platform is not None:
        value["platform"] = dict(descriptor.platform)
    return value


def manifest_type(data: bytes, declared: str | None, what: str, limit: int = MANIFEST_MAX) -> str:
    """The media type of the manifest or index `data`, of which its place said `declared` (a Content-Type, or nothing).

    The document's own ``mediaType`` and `declared` must agree, and what it holds must be of that kind.

    Raises:
        CorruptError: they contradict each other, or `data` is neither a manifest nor an index, or has more than `limit` bytes.
        UnsupportedError: it is docker's schema 1, or another kind.
    """
    declared = (declared or "").partition(";")[0].strip()
    document = parse_object(data, what, limit)
    own = document.get("mediaType")
    if declared in _SCHEMA_1 or document.get("schemaVersion") == 1:
        raise UnsupportedError(f"{what} is in docker's schema 1, which no current tool writes; push the image again")
    lists, layers = "manifests" in document, "layers" in document or "config" in document
    if lists == layers:
        raise CorruptError(f"{what} is {'manifest and index at once' if lists else 'neither a manifest nor an index'}")
    guessed = OCI_INDEX if lists else OCI_MANIFEST
    known = [kind for kind in (own, declared) if kind in MANIFEST_TYPES]
    if own is not None and own not in MANIFEST_TYPES:
        raise UnsupportedError(f"{what} is of the kind {str(own)[:100]!r}, which is not an image")
    kind = str(known[0]) if known else guessed
    if len(set(known)) > 1 or is_index(kind) != lists:
        raise CorruptError(f"{what} is served as {declared[:100] or kind!r}, and is something else")
    return kind


def is_index(media_type: str) -> bool:
    """Whether `media_type` is an index (docker: manifest list)."""
    return media_type in (OCI_INDEX, DOCKER_LIST)
