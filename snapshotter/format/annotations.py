"""The annotations by which layers of an image tell the snapshotter what they are.

containerd hands every ``containerd.io/snapshot/*`` annotation of a layer to the snapshotter as a label of Prepare, and
refuses a label whose key and value together exceed 4096 bytes (``labels/validate.go``). Everything here is pure; what
comes from a label is hostile until `parse` has accepted it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from snapshotter.errors import InvalidError
from snapshotter.format.digest import Digest, from_text, sha256, to_text

MEDIA_TYPE_METADATA = "application/vnd.oci.image.layer.v1.puzzlefs.metadata+zstd"
MEDIA_TYPE_PACK = "application/vnd.oci.image.layer.v1.puzzlefs.pack"

PREFIX = "containerd.io/snapshot/puzzlefs."
METADATA = PREFIX + "metadata"
DIFF_ID = PREFIX + "diff-id"
VERITY = PREFIX + "verity"
PACKS = PREFIX + "packs"
SOURCE = PREFIX + "source"
PROFILE = PREFIX + "profile"
BACKGROUND = PREFIX + "background"
"""``off``: of this layer nothing is fetched that nobody reads. Set by hand, or by whoever builds the image."""
PACK = PREFIX + "pack"
TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
"""Its value is the key under which containers/storage (podman from 5.1 on) asks an additional layer store: a metadata layer's
diff ID, a pack's `PackLayer.toc_digest`."""

LABEL_MAX = 4096
"""containerd's limit on a label's key and value together, in bytes."""

PACKS_MAX = 16
"""Most packs that a layer may name."""

PACK_SIZE_MAX = 1 << 40
"""Largest offset that a pack's index may have: far beyond any real one, small enough that sums stay exact."""

INDEX_SIZE_MAX = 64 << 20
"""Largest stored pack index, in bytes."""

_PACK = re.compile(r"(sha256:[0-9a-f]{64})@([0-9]{1,13})\+([0-9]{1,9})\Z")


@dataclass(frozen=True, slots=True)
class PackPlace:
    """A pack, and where in it its index lies (bytes from the start of the blob, and the index's stored length)."""

    pack: Digest
    index_offset: int
    index_length: int


@dataclass(frozen=True, slots=True)
class MetadataLayer:
    """What the annotations of a metadata layer say.

    `metadata` is the digest of the stored (zstd) blob, `diff_id` that of the uncompressed message, `verity` the message's
    fs-verity digest, `source` the reference under which the image was pushed: a hint. `profile` is the pack, one of `packs`,
    that holds what a start reads, to be fetched at once. `background`: whether the rest may be fetched unasked.
    """

    metadata: Digest
    diff_id: Digest
    verity: bytes
    packs: tuple[PackPlace, ...]
    source: str | None = None
    profile: Digest | None = None
    background: bool = True

    def annotations(self) -> dict[str, str]:
        """The annotations that say this.

        Raises:
            InvalidError: one would exceed containerd's limit of 4096 bytes.
        """
        packs = ",".join(f"{to_text(p.pack)}@{p.index_offset}+{p.index_length}" for p in self.packs)
        values = {
            METADATA: to_text(self.metadata),
            DIFF_ID: to_text(self.diff_id),
            VERITY: self.verity.hex(),
            PACKS: packs,
            TOC_DIGEST: to_text(self.diff_id),
        }
        if self.source is not None:
            values[SOURCE] = self.source
        if self.profile is not None:
            values[PROFILE] = to_text(self.profile)
        if not self.background:
            values[BACKGROUND] = "off"
        for key, value in values.items():
            if len(key) + len(value.encode()) > LABEL_MAX:
                raise InvalidError(f"annotation {key} would take {len(value)} bytes; containerd takes {LABEL_MAX} with the key")
        return values


@dataclass(frozen=True, slots=True)
class PackLayer:
    """What the annotations of a data layer say: the pack's digest, which is its diff ID too."""

    pack: Digest

    @property
    def toc_digest(self) -> Digest:
        """The key of the pack in an additional layer store.

        containers/storage takes equal keys for equal layers. A metadata layer's key is the digest of what it shows; a pack
        shows nothing, so its key must not be a digest that any content could have.
        """
        return sha256(b"puzzlefs pack " + self.pack)

    def annotations(self) -> dict[str, str]:
        """The annotations that say this."""
        return {PACK: to_text(self.pack), TOC_DIGEST: to_text(self.toc_digest)}


def parse(labels: Mapping[str, str]) -> MetadataLayer | PackLayer | None:
    """The PuzzleFS layer that `labels` describe; None if they describe none.

    Raises:
        InvalidError: the labels claim to describe a PuzzleFS layer and break a rule.
    """
    if PACK in labels:
        return PackLayer(from_text(labels[PACK]))
    if METADATA not in labels:
        return None
    for key in (DIFF_ID, VERITY, PACKS):
        if key not in labels:
            raise InvalidError(f"label {METADATA} without {key}: the image's annotations are incomplete, convert it again")
    verity = labels[VERITY]
    if not re.fullmatch(r"[0-9a-f]{64}", verity):
        raise InvalidError(f"label {VERITY} is not 64 lower-case hexadecimal digits: {verity[:100]!r}")
    packs = tuple(_packs(labels[PACKS]))
    profile = from_text(labels[PROFILE]) if PROFILE in labels else None
    if profile is not None and all(place.pack != profile for place in packs):
        raise InvalidError(f"label {PROFILE} names a pack that {PACKS} does not name")
    return MetadataLayer(
        metadata=from_text(labels[METADATA]),
        diff_id=from_text(labels[DIFF_ID]),
        verity=bytes.fromhex(verity),
        packs=packs,
        source=labels.get(SOURCE),
        profile=profile,
        background=labels.get(BACKGROUND) != "off",
    )


def _packs(text: str) -> Sequence[PackPlace]:
    items = text.split(",") if text else []
    if len(items) > PACKS_MAX:
        raise InvalidError(f"label {PACKS} names {len(items)} packs, at most {PACKS_MAX} are allowed")
    places = []
    for item in items:
        match = _PACK.match(item)
        if match is None:
            raise InvalidError(f"label {PACKS}: {item[:120]!r} is not sha256:HEX@OFFSET+LENGTH")
        place = PackPlace(from_text(match[1]), int(match[2]), int(match[3]))
        if place.index_offset > PACK_SIZE_MAX or place.index_length > INDEX_SIZE_MAX:
            raise InvalidError(f"label {PACKS}: the index in {item[:120]!r} lies beyond what any pack may hold")
        places.append(place)
    return places
