"""Annotations: what is written is read back, and a label that breaks a rule is refused."""

from __future__ import annotations

import pytest

from snapshotter.errors import InvalidError
from snapshotter.format import annotations
from snapshotter.format.annotations import MetadataLayer, PackLayer, PackPlace
from snapshotter.format.digest import sha256

LAYER = MetadataLayer(
    metadata=sha256(b"stored"),
    diff_id=sha256(b"message"),
    verity=bytes(range(32)),
    packs=(PackPlace(sha256(b"p1"), 1000, 50), PackPlace(sha256(b"p2"), 2**40, 64 << 20)),
    source="registry.example:5000/debian:12",
)


@pytest.mark.parametrize("layer", [LAYER, PackLayer(sha256(b"p1")), MetadataLayer(sha256(b"s"), sha256(b"m"), bytes(32), ())])
def test_a_layer_is_read_from_its_own_annotations(layer: MetadataLayer | PackLayer) -> None:
    assert annotations.parse(layer.annotations()) == layer


def test_every_annotation_reaches_the_snapshotter_and_podman_finds_its_key() -> None:
    for layer in (LAYER, PackLayer(sha256(b"p1"))):
        assert all(key.startswith("containerd.io/snapshot/") for key in layer.annotations())
    assert LAYER.annotations()[annotations.TOC_DIGEST] == LAYER.annotations()[annotations.DIFF_ID]


def test_the_most_packs_fit_containerds_limit() -> None:
    packs = tuple(PackPlace(sha256(bytes([i])), 2**40, 64 << 20) for i in range(annotations.PACKS_MAX))
    layer = MetadataLayer(LAYER.metadata, LAYER.diff_id, LAYER.verity, packs)
    assert annotations.parse(layer.annotations()) == layer


def test_an_annotation_beyond_containerds_limit_is_refused() -> None:
    with pytest.raises(InvalidError, match="containerd takes 4096"):
        MetadataLayer(LAYER.metadata, LAYER.diff_id, LAYER.verity, (), source="x" * 4096).annotations()


def test_labels_of_other_layers_are_none_of_ours() -> None:
    assert annotations.parse({"containerd.io/snapshot.ref": "sha256:x", annotations.TOC_DIGEST: "whatever"}) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (annotations.METADATA, "sha256:short"),
        (annotations.METADATA, "sha512:" + "0" * 128),
        (annotations.DIFF_ID, "../../etc/passwd"),
        (annotations.VERITY, "AB" * 32),
        (annotations.VERITY, ""),
        (annotations.PACKS, "sha256:" + "0" * 64),
        (annotations.PACKS, "sha256:" + "0" * 64 + "@-1+5"),
        (annotations.PACKS, "sha256:" + "0" * 64 + "@9999999999999+5"),
        (annotations.PACKS, "sha256:" + "0" * 64 + "@5+999999999"),
        (annotations.PACKS, ",".join(["sha256:" + "0" * 64 + "@5+5"] * 17)),
        (annotations.PACKS, "sha256:" + "0" * 64 + "@5+5\n"),
    ],
)
def test_a_label_that_breaks_a_rule_is_refused(key: str, value: str) -> None:
    with pytest.raises(InvalidError):
        annotations.parse({**LAYER.annotations(), key: value})


@pytest.mark.parametrize("key", [annotations.DIFF_ID, annotations.VERITY, annotations.PACKS])
def test_incomplete_labels_are_refused(key: str) -> None:
    labels = LAYER.annotations()
    del labels[key]
    with pytest.raises(InvalidError, match="incomplete"):
        annotations.parse(labels)
