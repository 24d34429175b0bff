"""Where an image came from: who says it is believed in a fixed order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from snapshotter.daemon.origin import Origins, pulled_from, with_port
from snapshotter.daemon.sources import LayerSource
from snapshotter.errors import UnavailableError
from snapshotter.format.annotations import MetadataLayer, PackPlace
from snapshotter.format.digest import Digest, sha256, to_text
from snapshotter.registry.reference import parse

PACK = PackPlace(sha256(b"pack"), 10, 5)
LAYER = MetadataLayer(sha256(b"stored"), sha256(b"message"), bytes(32), (PACK,), "hint.x:5000/app:1")
LABEL = "containerd.io/distribution.source."


@dataclass
class Content:
    """containerd's content store of one namespace."""

    blobs: set[Digest] = field(default_factory=set)
    manifests: list[dict[str, str]] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    down: bool = False

    def size(self, digest: Digest) -> int | None:
        if self.down:
            raise UnavailableError("containerd is down")
        return 1 if digest in self.blobs else None

    def labels(self, filters: Sequence[str]) -> Iterable[Mapping[str, str]]:
        assert f'labels."containerd.io/gc.ref.content.l.0"=={to_text(LAYER.metadata)}' in filters
        return self.manifests

    def image_names(self) -> Sequence[str]:
        return self.images


def found(content: Content, image: str | None = LAYER.source, ports: Sequence[str] = ()) -> LayerSource:
    return Origins(lambda namespace: content, lambda host: ports).find(LAYER, image, "k8s.io")


def test_the_client_is_believed_before_the_image() -> None:
    content = Content(manifests=[{LABEL + "pulled.x": "app"}])
    assert found(content, "said.x/app:2") == LayerSource((PACK,), ("said.x/app:2", "hint.x:5000/app:1"), to_text(LAYER.diff_id))


def test_where_the_client_says_nothing_containerd_knows_what_was_pulled() -> None:
    content = Content(manifests=[{LABEL + "pulled.x": "team/app", "other": "label"}, {"no": "source"}])
    assert found(content).images == ("pulled.x/team/app", "hint.x:5000/app:1")


def test_an_image_that_nobody_pulled_has_its_own_hint() -> None:
    assert found(Content()).images == ("hint.x:5000/app:1",)


@pytest.mark.parametrize("blob", [LAYER.metadata, PACK.pack], ids=["metadata", "pack"])
def test_content_that_is_there_is_read_there(blob: Digest) -> None:
    assert found(Content(blobs={blob})).namespaces == ("k8s.io",)
    assert found(Content()).namespaces == ()


def test_a_containerd_that_does_not_answer_knows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert found(Content(down=True)) == LayerSource((PACK,), ("hint.x:5000/app:1",), to_text(LAYER.diff_id))
    assert "containerd is down" in caplog.text


def test_without_a_containerd_nobody_is_asked() -> None:
    source = Origins(lambda namespace: None, lambda host: []).find(LAYER, "said.x/a", "")
    assert source.images == (
        "said.x/a",
        "hint.x:5000/app:1",
    )


@pytest.mark.parametrize(
    ("hint", "images", "hosts", "expected"),
    [
        (None, [], [], ["h.x/team/app"]),
        ("h.x:5000/else:1", [], [], ["h.x:5000/team/app"]),
        ("other.x:5000/team/app", [], [], ["h.x/team/app"]),
        (None, ["h.x:5001/team/app:7", "garbage ref", "z.x:1/team/app"], [], ["h.x:5001/team/app"]),
        (
            "h.x:5000/a",
            ["h.x:5001/team/app:7", "h.x:5002/b:1"],
            ["h.x:5003"],
            [f"h.x:{p}/team/app" for p in (5001, 5000, 5002, 5003)],
        ),
        (None, ["h.x/team/app:1"], ["h.x:5003"], ["h.x/team/app", "h.x:5003/team/app"]),
    ],
)
def test_the_port_is_looked_for_where_the_host_stands_with_one(
    hint: str | None, images: list[str], hosts: list[str], expected: list[str]
) -> None:
    parsed = None if hint is None else parse(hint)
    assert list(with_port("h.x", "team/app", parsed, images, hosts)) == expected


def test_labels_of_manifests_are_not_trusted() -> None:
    labels = {LABEL + "h.x": "a/b,../c,d", LABEL + "h.x/evil": "a", LABEL + "127.0.0.1": "e", LABEL: "f", "x": "y"}
    assert sorted(pulled_from(labels)) == [("127.0.0.1", "e"), ("h.x", "a/b"), ("h.x", "d")]
