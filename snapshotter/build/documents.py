"""The JSON of the images that are read and written: what is taken from a source's, and what ours says.

Pure functions. A source's configuration is kept but for what describes its layers; what is parsed is hostile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from snapshotter.errors import CorruptError, InvalidError, UnsupportedError
from snapshotter.format.annotations import MEDIA_TYPE_METADATA, MEDIA_TYPE_PACK
from snapshotter.format.digest import Digest, from_text, sha256, to_text
from snapshotter.registry.base import LOCAL_MANIFEST_MAX, MANIFEST_MAX, Descriptor
from snapshotter.registry.documents import (
    OCI_INDEX,
    OCI_MANIFEST,
    canonical_json,
    descriptor_from_json,
    descriptor_to_json,
    parse_object,
)

OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

LAYERS_MAX = 512
"""Most layers of a source image; containerd's overlays take 128 on a page of mount options."""

_LAYER_PREFIXES = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
)
_COMPRESSIONS = ("", "+gzip", "+zstd", ".gzip", ".zstd")
_OURS = (MEDIA_TYPE_METADATA, MEDIA_TYPE_PACK)
_CREATED_BY = "puzzlefs"


@dataclass(frozen=True, slots=True)
class ImageManifest:
    """An image manifest: its configuration, its layers and its annotations."""

    config: Descriptor
    layers: Sequence[Descriptor]
    annotations: Mapping[str, str]


def parse_manifest(data: bytes, what: str, *, local: bool = False) -> ImageManifest:
    """The image manifest `data`, OCI's or docker's schema 2; `what` names it in errors.

    `local`: it may be one in upstream's layout, whose layers are chunks, so that only its size is bounded.

    Raises:
        CorruptError: it is no manifest.
    """
    document = parse_object(data, what, LOCAL_MANIFEST_MAX if local else MANIFEST_MAX)
    layers = document.get("layers")
    if not isinstance(layers, list):
        raise CorruptError(f"{what} has no list of layers")
    if not local and len(layers) > LAYERS_MAX:
        raise CorruptError(f"{what} has {len(layers)} layers, at most {LAYERS_MAX} are read")
    annotations = document.get("annotations") or {}
    if not isinstance(annotations, dict) or not all(isinstance(value, str) for value in annotations.values()):
        raise CorruptError(f"{what}: its annotations are not all text")
    return ImageManifest(
        descriptor_from_json(document.get("config"), what),
        [descriptor_from_json(layer, what) for layer in layers],
        annotations,
    )


def parse_index(data: bytes, what: str) -> tuple[Sequence[Descriptor], Mapping[str, str]]:
    """The entries and annotations of the index (docker: manifest list) `data`.

    Raises:
        CorruptError: it is none.
    """
    document = parse_object(data, what)
    entries = document.get("manifests")
    if not isinstance(entries, list) or len(entries) > LAYERS_MAX:
        raise CorruptError(f"{what} has no list of at most {LAYERS_MAX} manifests")
    annotations = document.get("annotations") or {}
    if not isinstance(annotations, dict) or not all(isinstance(value, str) for value in annotations.values()):
        raise CorruptError(f"{what}: its annotations are not all text")
    return [descriptor_from_json(entry, what) for entry in entries], annotations


def is_image(entry: Descriptor) -> bool:
    """Whether an index's entry is an image that can run; builders attach attestations as entries of no platform."""
    if "vnd.docker.reference.type" in entry.annotations:
        return False
    platform = entry.platform or {}
    return platform.get("os") != "unknown" or platform.get("architecture") != "unknown"


def check_convertible(manifest: ImageManifest, what: str) -> None:
    """Whether the manifest is of an ordinary image.

    Raises:
        InvalidError: it is a PuzzleFS image already.
        UnsupportedError: its layers are not tars, or it is no container image.
    """
    for layer in manifest.layers:
        if layer.media_type in _OURS or ".puzzlefs." in layer.media_type:
            raise InvalidError(f"{what} is a PuzzleFS image already; copy it with skopeo copy")
    if manifest.config.media_type not in (OCI_CONFIG, DOCKER_CONFIG):
        raise UnsupportedError(f"{what} is not a container image: its configuration is of type {manifest.config.media_type}")
    for layer in manifest.layers:
        prefix = next((prefix for prefix in _LAYER_PREFIXES if layer.media_type.startswith(prefix)), None)
        if prefix is None or layer.media_type[len(prefix) :] not in _COMPRESSIONS:
            raise UnsupportedError(f"{what} has a layer of type {layer.media_type}; only tar, gzip and zstd can be converted")


def diff_ids(config: Mapping[str, Any], layers: int, what: str) -> list[Digest]:
    """The diff IDs that the configuration of an image with `layers` layers lists.

    Raises:
        CorruptError: they are not as many, or no digests.
    """
    rootfs = config.get("rootfs")
    listed = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
        raise CorruptError(f"the configuration of {what} lists no diff IDs")
    if len(listed) != layers:
        raise CorruptError(f"{what} has {layers} layers, but its configuration lists {len(listed)}")
    try:
        return [from_text(text) for text in listed]
    except InvalidError as error:
        raise CorruptError(f"the configuration of {what}: {error}") from None


def new_config(source: Mapping[str, Any], metadata: Sequence[Digest], packs: Sequence[Digest]) -> bytes:
    """The configuration of our image: the source's with other layers.

    Of `rootfs.diff_ids` the first are the metadata's, then the packs'. The history has one entry that is not empty for each,
    as tools that count them expect.
    """
    created = source.get("created")
    stamp = {"created": created} if isinstance(created, str) else {}
    history = _history(source.get("history"), len(metadata), stamp)
    history += [{**stamp, "created_by": _CREATED_BY, "comment": "file data (pack)"} for _ in packs]
    return canonical_json(
        {
            **source,
            "rootfs": {"type": "layers", "diff_ids": [to_text(digest) for digest in (*metadata, *packs)]},
            "history": history,
        }
    )


def _history(source: object, layers: int, stamp: Mapping[str, str]) -> list[dict[str, Any]]:
    entries = [entry for entry in source if isinstance(entry, dict)] if isinstance(source, list) else []
    filled = [index for index, entry in enumerate(entries) if not entry.get("empty_layer")]
    for index in filled[layers:]:
        entries[index] = {**entries[index], "empty_layer": True}
    missing = max(layers - len(filled), 0)
    return entries + [{**stamp, "created_by": _CREATED_BY} for _ in range(missing)]


def new_manifest(config: Descriptor, layers: Sequence[Descriptor], annotations: Mapping[str, str]) -> bytes:
    """An OCI image manifest."""
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor_to_json(config),
        "layers": [descriptor_to_json(layer) for layer in layers],
    }
    if annotations:
        document["annotations"] = dict(annotations)
    return canonical_json(document)


def new_index(manifests: Sequence[Descriptor], annotations: Mapping[str, str]) -> bytes:
    """An OCI index."""
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [descriptor_to_json(manifest) for manifest in manifests],
    }
    if annotations:
        document["annotations"] = dict(annotations)
    return canonical_json(document)


def describe(
    media_type: str,
    data: bytes,
    annotations: Mapping[str, str] | None = None,
    platform: Mapping[str, object] | None = None,
) -> Descriptor:
    """The descriptor of `data`."""
    return Descriptor(media_type, sha256(data), len(data), annotations or {}, platform)
