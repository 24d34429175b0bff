"""What is decided about keys and labels before anything is fetched."""

from __future__ import annotations

import pytest

from snapshotter.errors import FailedPreconditionError, InvalidError
from snapshotter.format.digest import sha256, to_text
from snapshotter.snapshots import lazy
from snapshotter.snapshots.model import REF_LABEL, Info, Kind, Row
from tests.support.layers import chains, labels_of, metadata, pack

LAYER = metadata("one")
CHAIN = chains(LAYER)[0]


def committed(name: str, **labels: str) -> Row:
    return Row(1, Info(name, "", Kind.COMMITTED, labels, 0, 0))


def test_a_lazy_layer_is_asked_for_with_a_chain_id_alone() -> None:
    assert lazy.requested(labels_of(LAYER, CHAIN)) == LAYER
    assert lazy.requested(labels_of(pack("p"), CHAIN)) == pack("p")
    assert lazy.requested({REF_LABEL: to_text(CHAIN)}) is None
    assert lazy.requested(LAYER.annotations()) is None
    assert lazy.requested({}) is None


def test_labels_that_break_a_rule_are_refused() -> None:
    labels = labels_of(LAYER, CHAIN)
    del labels["containerd.io/snapshot/puzzlefs.diff-id"]
    with pytest.raises(InvalidError, match="diff-id"):
        lazy.requested(labels)


def test_the_first_layers_chain_id_is_its_diff_id() -> None:
    assert lazy.checked_chain(LAYER, to_text(LAYER.diff_id), None) == LAYER.diff_id
    with pytest.raises(InvalidError, match="not what chain ID"):
        lazy.checked_chain(LAYER, to_text(sha256(b"victim")), None)
    with pytest.raises(InvalidError, match="not a digest"):
        lazy.checked_chain(LAYER, "latest", None)


def test_the_parents_chain_id_counts() -> None:
    base, top = chains(metadata("base"), LAYER)
    on_lazy = Row(1, Info("any", "", Kind.COMMITTED, {}, 0, 0), chain_id=base)
    assert lazy.checked_chain(LAYER, to_text(top), on_lazy) == top
    assert lazy.checked_chain(LAYER, to_text(top), committed(f"default/12/{to_text(base)}")) == top
    assert lazy.checked_chain(LAYER, to_text(top), committed(to_text(base))) == top
    assert lazy.checked_chain(LAYER, to_text(top), committed("default/12/mine", **{REF_LABEL: to_text(base)})) == top
    with pytest.raises(InvalidError, match="not what chain ID"):
        lazy.checked_chain(LAYER, to_text(CHAIN), on_lazy)


def test_a_parent_without_a_chain_id_is_refused() -> None:
    with pytest.raises(FailedPreconditionError, match="'default/3/made by hand'"):
        lazy.checked_chain(LAYER, to_text(CHAIN), committed("default/3/made by hand"))


@pytest.mark.parametrize(
    ("key", "namespace", "prefix"),
    [
        ("k8s.io/12/extract-1 sha256:ab", "k8s.io", "k8s.io/12/"),
        ("default/3/a/b", "default", "default/3/"),
        ("default/3", "default", ""),
        ("plain", "", ""),
    ],
)
def test_what_a_key_says(key: str, namespace: str, prefix: str) -> None:
    assert lazy.namespace_of(key) == namespace
    assert lazy.name_prefix(key) == prefix


def test_the_image_is_what_cri_pulls_else_where_it_was_pushed() -> None:
    assert lazy.image_of({lazy.IMAGE_LABEL: "registry.test/other:2"}, LAYER) == "registry.test/other:2"
    assert lazy.image_of({}, LAYER) == "registry.test/app:1"
    assert lazy.image_of({}, metadata("x", source=None)) is None
