"""What containers/storage is told of a layer: its keys, and the ``info`` document. Pure.

Nothing in containers/storage compares what a store shows with a digest, so the store must not let an image speak about another
one's layers. What a metadata layer shows is checked against its diff ID. A pack is never read whole, so nothing can be checked,
and it shows an empty directory: if that were recorded under the pack's own digest, an image could list another image's layer
as a "pack" of its own, and containers/storage would from then on take the empty directory for that layer. So a pack is
recorded as what it is: its diff ID is that of the empty tar, it has no compressed digest, and its TOC digest is derived from
the pack's in a way that no metadata layer's can be (`format.annotations.PackLayer.toc_digest`).
"""

from __future__ import annotations

from snapshotter.daemon.store.state import StoredLayer
from snapshotter.format.annotations import PackLayer
from snapshotter.format.digest import Digest, from_text, to_text
from snapshotter.registry.documents import canonical_json

EMPTY_TAR = from_text("sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef")
"""sha256 of 1,024 zero bytes: the shortest tar there is."""

_UNCOMPRESSED = 0
_ZSTD = 4
"""``archive.Compression`` of containers/storage."""
_EXPECTED_DIFF_ID = "expected-layer-diffid"
"""containers/image's flag (``storage/storage_dest.go``): the diff ID that the image's configuration names."""


def keys(layer: StoredLayer) -> tuple[Digest, Digest]:
    """The blob digest and the TOC digest by which `layer` can be asked for."""
    described = layer.layer
    return layer.blob, described.toc_digest if isinstance(described, PackLayer) else described.diff_id


def info(layer: StoredLayer, diff_size: int) -> bytes:
    """containers/storage's Layer document (``layers.go``), for versions 1.43 to 1.59. `diff_size` in bytes.

    1.43 (podman 4.3) panics without ``diff-digest``, 1.59 (podman 5.8) refuses a layer without ``toc-digest``, and a size below
    0 counts as corrupted.
    """
    described = layer.layer
    toc = keys(layer)[1]
    document: dict[str, object] = {"toc-digest": to_text(toc), "compressed-size": layer.size, "diff-size": diff_size}
    if isinstance(described, PackLayer):
        document |= {"diff-digest": to_text(EMPTY_TAR), "compression": _UNCOMPRESSED}
        document["flags"] = {_EXPECTED_DIFF_ID: to_text(described.pack)}
    else:
        document |= {"diff-digest": to_text(described.diff_id), "compression": _ZSTD}
        document |= {"compressed-diff-digest": to_text(layer.blob)}
        document["flags"] = {_EXPECTED_DIFF_ID: to_text(described.diff_id)}
    return canonical_json(document)
