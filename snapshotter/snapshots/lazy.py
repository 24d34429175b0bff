"""What the snapshotter needs from whoever mounts PuzzleFS layers, and what it checks before it asks.

`LazyLayers` is implemented above this package (fetching and mounting are not the snapshotter's business); the functions are
pure decisions about the keys and labels that containerd's unpacker sends with Prepare.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from snapshotter.errors import FailedPreconditionError, InvalidError, PuzzlefsError
from snapshotter.format.annotations import MetadataLayer, PackLayer, parse
from snapshotter.format.digest import Digest, chain_id, from_text, to_text
from snapshotter.snapshots.model import REF_LABEL, Row, Usage

IMAGE_LABEL = "containerd.io/snapshot/cri.image-ref"
"""The reference that is being pulled (``pkg/snapshotters/annotations.go``)."""

_CHAIN_NAME = re.compile(r"(?:.*[/ ])?(sha256:[0-9a-f]{64})\Z", re.DOTALL)


class LazyLayers(Protocol):
    """Mounted PuzzleFS layers, by diff ID. One layer is mounted once, whatever chains it is part of.

    Methods may be called from many threads at once; about one diff ID, `ensure` and `release` never are.
    """

    def ensure(self, layer: MetadataLayer, image: str | None, namespace: str) -> None:
        """Have the layer's metadata here, checked against its diff ID, and mounted at `mountpoint`.

        Idempotent: for a layer that is mounted already it takes what is new in `layer` and `image` (where its packs can
        be found) and answers without asking anybody. When it raises, nothing half-made stays.

        `image` is the reference that is being pulled (None: nothing names it), `namespace` containerd's.

        Raises:
            UnavailableError: it cannot be had now; names image, layer, host and reason.
            CorruptError, InvalidError: what was had is not the layer, or breaks a rule of the format; likewise.
        """
        ...

    def mountpoint(self, diff_id: Digest) -> Path:
        """The lower directory of overlayfs that shows this layer; asked only between `ensure` or `restore` and `release`."""
        ...

    def restore(self, layers: Iterable[tuple[MetadataLayer, str | None]]) -> Mapping[Digest, PuzzlefsError]:
        """At a start: mount every one of `layers` again from what is on this machine; no network.

        A diff ID occurs once for every way in which it was asked for, latest first. Answers the layers that could not be
        mounted, with the reason; the others are not affected.
        """
        ...

    def release(self, diff_id: Digest) -> None:
        """No snapshot uses this layer any more: unmount and forget it. Harmless for one that is unknown.

        Raises:
            PuzzlefsError: it cannot be done now; the snapshotter asks again at its next clean-up.
        """
        ...

    def trim(self, layers: Iterable[MetadataLayer]) -> None:
        """These are all the layers that are recorded: what is kept for others, and no use to these, may go."""
        ...

    def usage(self, diff_id: Digest, below: Sequence[Digest] = ()) -> Usage:
        """What the layer takes on this machine's disk, without what the layers `below` take already.

        Raises:
            NotFoundError: one of them is not on this machine.
        """
        ...


def requested(labels: Mapping[str, str]) -> MetadataLayer | PackLayer | None:
    """The PuzzleFS layer that a Prepare with `labels` asks for; None if an ordinary snapshot is wanted.

    Without the label of the chain ID nobody would understand the answer "already exists" (``metadata/snapshot.go``), so the
    other labels mean nothing then.

    Raises:
        InvalidError: the labels claim to describe a PuzzleFS layer and break a rule.
    """
    return parse(labels) if labels.get(REF_LABEL) else None


def diff_id_of(layer: MetadataLayer | PackLayer) -> Digest:
    """The diff ID of `layer`; a pack's is its digest."""
    return layer.diff_id if isinstance(layer, MetadataLayer) else layer.pack


def checked_chain(layer: MetadataLayer | PackLayer, ref: str, parent: Row | None) -> Digest:
    """The chain ID of `layer` on `parent`, which must be the one that the client asks for (`ref`).

    This is what keeps an image from planting its layer under the chain ID of another: the manifest names the diff IDs, the
    annotations name the content, and only here do the two meet.

    Raises:
        InvalidError: it is another one.
        FailedPreconditionError: the parent's own chain ID cannot be told.
    """
    wanted, diff_id = from_text(ref), diff_id_of(layer)
    below = None
    if parent is not None:
        below = chain_of(parent)
        if below is None:
            raise FailedPreconditionError(
                f"layer {to_text(diff_id)} cannot be checked against chain ID {ref}: the chain ID of its parent "
                f"{parent.info.name!r} is unknown, because it was not unpacked from an image"
            )
    actual = chain_id(below, diff_id)
    if actual != wanted:
        raise InvalidError(
            f"layer {to_text(diff_id)} is not what chain ID {ref} asks for (on this parent it makes {to_text(actual)}): the "
            "image's annotations do not belong to its configuration, convert it again"
        )
    return actual


def chain_of(row: Row) -> Digest | None:
    """The chain ID that a committed snapshot stands for; None where nothing says it.

    containerd's unpacker commits under the chain ID, which containerd prefixes with namespace and a number.
    """
    if row.chain_id is not None:
        return row.chain_id
    match = _CHAIN_NAME.match(row.info.name) or _CHAIN_NAME.match(row.info.labels.get(REF_LABEL, ""))
    return None if match is None else from_text(match[1])


def image_of(labels: Mapping[str, str], layer: MetadataLayer) -> str | None:
    """The reference by which the layer can be found, as far as the labels say."""
    return labels.get(IMAGE_LABEL) or layer.source


def namespace_of(key: str) -> str:
    """containerd's namespace, which begins the keys that it sends (``createKey``); empty for another client's key."""
    namespace, slash, _ = key.partition("/")
    return namespace if slash else ""


def name_prefix(key: str) -> str:
    """What the name of a lazy snapshot begins with: the ``namespace/number/`` of the key that asked for it, if it has one."""
    parts = key.split("/", 2)
    return "/".join(parts[:2]) + "/" if len(parts) == 3 else ""
