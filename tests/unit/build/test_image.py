"""Conversion: whatever ordinary image comes in, an image that containerd can start lazily goes out."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import zstandard

from snapshotter.build.image import Converted, Options, convert
from snapshotter.build.progress import Progress
from snapshotter.errors import CorruptError, InvalidError, NotFoundError, UnavailableError, UnsupportedError
from snapshotter.format.annotations import (
    MEDIA_TYPE_METADATA,
    MEDIA_TYPE_PACK,
    PACKS_MAX,
    SOURCE,
    MetadataLayer,
    PackLayer,
    parse,
)
from snapshotter.format.compression import decode_chunk, decompress
from snapshotter.format.digest import Digest, from_text, sha256, to_text
from snapshotter.format.model import Kind
from snapshotter.format.pack import PackIndex
from snapshotter.format.rootfs import Rootfs
from snapshotter.format.verity import verity_digest
from snapshotter.registry.base import Descriptor, ImageStore
from snapshotter.registry.credentials import FixedCredentials
from snapshotter.registry.hosts import RegistryConfig, RegistryHost
from snapshotter.registry.layout import LayoutStore
from snapshotter.registry.reference import parse as parse_reference
from snapshotter.registry.registries import Registries
from tests.support.builds import SMALL
from tests.support.chunks import some_chunks
from tests.support.images import Layer
from tests.support.registry import FakeRegistry

OPTIONS = Options(cutting=SMALL, workers=2)
GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


class Source(LayoutStore):
    """A layout that ordinary images are put into."""

    def put(self, data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        blob = Descriptor(media_type, sha256(data), len(data))
        self.put_blob(blob, io.BytesIO(data))
        return {"mediaType": media_type, "digest": to_text(blob.digest), "size": blob.size, **more}

    def image(
        self,
        tag: str | None,
        tars: Sequence[bytes],
        *,
        types: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        manifest: Mapping[str, Any] | None = None,
    ) -> Descriptor:
        layers = []
        for number, tar in enumerate(tars):
            media_type = types[number] if types else GZIP
            data = gzip.compress(tar, 1, mtime=0) if "gzip" in media_type else tar
            layers.append(self.put(zstandard.compress(tar) if "zstd" in media_type else data, media_type))
        described = {
            "architecture": "amd64",
            "os": "linux",
            "created": "2024-01-02T03:04:05Z",
            "config": {"Cmd": ["sh"], "Labels": {"ü": "x"}},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in tars]},
            "history": [{"created_by": f"layer {n}"} for n in range(len(tars))],
            **(config or {}),
        }
        document = {
            "schemaVersion": 2,
            "mediaType": OCI,
            "config": self.put(json.dumps(described).encode(), "application/vnd.oci.image.config.v1+json"),
            "layers": layers,
            **(manifest or {}),
        }
        return self.document(tag, document)

    def document(self, tag: str | None, document: Mapping[str, Any]) -> Descriptor:
        data = json.dumps(document).encode()
        descriptor = Descriptor(document["mediaType"], sha256(data), len(data))
        self.put_manifest(descriptor, data, tag)
        return descriptor

    def put_index(self, tag: str, entries: Sequence[tuple[Descriptor, Mapping[str, Any]]], **more: Any) -> None:
        listed = [{"mediaType": e.media_type, "digest": to_text(e.digest), "size": e.size, **more} for e, more in entries]
        self.document(tag, {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed, **more})


class Read:
    """One image of ours, taken apart and checked on the way: what a snapshotter would do with it."""

    def __init__(self, store: LayoutStore, reference: str) -> None:
        self.store = store
        self.descriptor, data = store.manifest(reference)
        self.manifest = json.loads(data)
        self.config = json.loads(self.blob(self.manifest["config"]))
        self.layers: list[tuple[MetadataLayer, Rootfs]] = []
        self.packs: list[Digest] = []
        diff_ids = []
        for layer in self.manifest["layers"]:
            labels = parse(layer["annotations"])
            if layer["mediaType"] == MEDIA_TYPE_METADATA:
                assert self.packs == [], "metadata layers come first"
                assert isinstance(labels, MetadataLayer)
                message = decompress(self.blob(layer), 1 << 30)
                assert to_text(labels.metadata) == layer["digest"]
                assert (labels.diff_id, labels.verity) == (sha256(message), verity_digest(message))
                self.layers.append((labels, Rootfs.open(message)))
                diff_ids.append(to_text(labels.diff_id))
            else:
                assert layer["mediaType"] == MEDIA_TYPE_PACK
                assert isinstance(labels, PackLayer)
                assert to_text(labels.pack) == layer["digest"]
                self.packs.append(labels.pack)
                diff_ids.append(layer["digest"])
        assert self.config["rootfs"] == {"type": "layers", "diff_ids": diff_ids}
        assert len([entry for entry in self.config["history"] if not entry.get("empty_layer")]) == len(diff_ids)
        assert len(self.packs) == len(set(self.packs)) <= PACKS_MAX

    def blob(self, described: Mapping[str, Any]) -> bytes:
        with self.store.open_blob(Descriptor("", from_text(described["digest"]), described["size"])) as stream:
            return stream.read()

    def files(self, layer: int) -> dict[bytes, bytes]:
        """The regular files of a layer, each chunk fetched by range from the packs that the layer names."""
        labels, rootfs = self.layers[layer]
        indexes = []
        for place in labels.packs:
            assert place.pack in self.packs
            stored = self.store.read_range(place.pack, place.index_offset, place.index_length)
            indexes.append((place.pack, PackIndex.parse(stored, place.index_offset)))
        found: dict[bytes, bytes] = {}
        pending = [(b"", 1)]
        while pending:
            path, ino = pending.pop()
            inode = rootfs.inode(ino)
            pending += [(path + b"/" + entry.name, entry.ino) for entry in inode.entries]
            if inode.kind is Kind.FILE:
                found[path] = b"".join(
                    self._chunk(indexes, chunk.digest)[chunk.offset : chunk.offset + chunk.length] for chunk in inode.chunks
                )
        return found

    def _chunk(self, indexes: Sequence[tuple[Digest, PackIndex]], digest: Digest) -> bytes:
        for pack, index in indexes:
            entry = index.find(digest)
            if entry is not None:
                stored = self.store.read_range(pack, entry.offset, entry.stored_length)
                raw = decode_chunk(entry.codec, stored, entry.raw_length)
                assert sha256(raw) == digest
                return raw
        raise AssertionError(f"no pack of the layer has chunk {digest.hex()}")

    def close(self) -> None:
        for _, rootfs in self.layers:
            rootfs.close()


def tar(files: Mapping[bytes, bytes]) -> bytes:
    layer = Layer()
    for name, data in files.items():
        layer.file(name, data)
    return layer.tar()


def data(seed: int, size: int = 20_000) -> bytes:
    return b"".join(some_chunks(4, seed, size // 4))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path / "source", durable=False)


@pytest.fixture
def target(tmp_path: Path) -> LayoutStore:
    return LayoutStore(tmp_path / "target", durable=False)


@pytest.fixture
def opened(target: LayoutStore) -> Iterator[Any]:
    reads: list[Read] = []

    def read(reference: str = "out", store: LayoutStore | None = None) -> Read:
        reads.append(Read(store or target, reference))
        return reads[-1]

    yield read
    for one in reads:
        one.close()


def converted(source: Source, target: ImageStore, tag: str = "in", to: str = "out", **more: Any) -> Converted:
    return convert(source, tag, target, to, options=OPTIONS, **more)


def test_an_image_of_several_layers(source: Source, target: LayoutStore, opened: Any) -> None:
    first, second = {b"a": data(1), b"b": b"small"}, {b"c": data(2), b"a": data(1)}
    source.image("in", [tar(first), tar(second)], manifest={"annotations": {"k": "v"}})
    done = converted(source, target, destination_name="registry.example:5000/x:1")
    read = opened()
    assert read.files(0) == {b"/" + name: content for name, content in first.items()}
    assert read.files(1) == {b"/" + name: content for name, content in second.items()}
    assert (len(read.layers), len(read.packs)) == (2, 2)
    assert read.manifest["annotations"] == {"k": "v"}
    assert read.manifest["layers"][0]["annotations"][SOURCE] == "registry.example:5000/x:1"
    assert [entry["created_by"] for entry in read.config["history"]][:2] == ["layer 0", "layer 1"]
    assert {key: read.config[key] for key in ("architecture", "os", "config", "created")} == {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["sh"], "Labels": {"ü": "x"}},
        "created": "2024-01-02T03:04:05Z",
    }
    assert done.manifest.digest == read.descriptor.digest
    assert (done.platforms, done.layers, done.packs_new, done.packs_reused) == (1, 2, 2, 0)
    assert done.tar == len(tar(first)) + len(tar(second))
    # The second layer repeats a file of the first: its data is in the first layer's pack.
    assert [place.pack for place in read.layers[1][0].packs] == read.packs


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.oci.image.layer.v1.tar",
        GZIP,
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    ],
)
def test_the_compression_of_a_layer_does_not_matter(
    source: Source, target: LayoutStore, opened: Any, media_type: str, tmp_path: Path
) -> None:
    content = tar({b"a": data(1)})
    source.image("in", [content], types=[media_type])
    source.image("plain", [content], types=["application/vnd.oci.image.layer.v1.tar"])
    other = LayoutStore(tmp_path / "other", durable=False)
    assert converted(source, target).manifest == converted(source, other, "plain").manifest


def test_dockers_documents_become_ocis(source: Source, target: LayoutStore, opened: Any) -> None:
    image = source.image("plain", [tar({b"a": b"x"})])
    document = json.loads(source.manifest("plain")[1])
    document["mediaType"] = "application/vnd.docker.distribution.manifest.v2+json"
    document["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json"
    document["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    source.document("in", document)
    assert image.media_type == OCI
    converted(source, target)
    assert opened().manifest["mediaType"] == OCI
    assert opened().manifest["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"


def test_every_platform_of_an_index_and_no_attestation(source: Source, target: LayoutStore, opened: Any) -> None:
    amd64 = source.image(None, [tar({b"a": data(1), b"x": b"amd64"})])
    arm64 = source.image(None, [tar({b"a": data(1), b"x": b"arm64"})], config={"architecture": "arm64"})
    attestation = source.image(None, [tar({b"statement": b"{}"})])
    source.put_index(
        "in",
        [
            (amd64, {"platform": {"os": "linux", "architecture": "amd64"}}),
            (arm64, {"platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}, "annotations": {"k": "v"}}),
            (attestation, {"platform": {"os": "unknown", "architecture": "unknown"}}),
        ],
        annotations={"of": "index"},
    )
    notes: list[Progress] = []
    done = converted(source, target, report=lambda now: notes.append(now) if now.stage == "note" else None)
    index = json.loads(target.manifest("out")[1])
    assert index["mediaType"] == INDEX
    assert index["annotations"] == {"of": "index"}
    assert [entry["platform"] for entry in index["manifests"]] == [
        {"os": "linux", "architecture": "amd64"},
        {"os": "linux", "architecture": "arm64", "variant": "v8"},
    ]
    assert index["manifests"][1]["annotations"] == {"k": "v"}
    assert done.platforms == 2
    assert any("attestation" in note.what for note in notes)
    one, two = (opened(entry["digest"]) for entry in index["manifests"])
    assert one.files(0) == {b"/a": data(1), b"/x": b"amd64"}
    assert two.files(0) == {b"/a": data(1), b"/x": b"arm64"}
    assert set(one.packs) < set(two.packs)  # the second platform reads the shared data out of the first one's pack
    assert (done.packs_new, done.packs_reused) == (2, 0)


# Reuse.


def test_a_new_version_costs_what_changed(source: Source, target: LayoutStore, opened: Any) -> None:
    source.image("v1", [tar({b"a": data(1, 100_000)})])
    source.image("v2", [tar({b"a": data(1, 100_000), b"b": data(2, 5_000)})])
    converted(source, target, "v1", "v1")
    done = converted(source, target, "v2", "v2")
    assert (done.packs_new, done.packs_reused) == (1, 1)
    assert done.pushed < 15_000
    assert opened("v2").files(0) == {b"/a": data(1, 100_000), b"/b": data(2, 5_000)}
    assert opened("v1").packs[0] in opened("v2").packs


def test_the_same_again_costs_nothing(source: Source, target: LayoutStore) -> None:
    source.image("in", [tar({b"a": data(1)})])
    first = converted(source, target)
    again = converted(source, target)
    assert again.manifest == first.manifest
    assert (again.pushed, again.packs_new, again.packs_reused) == (0, 0, 1)


def test_the_metadata_does_not_depend_on_what_the_destination_holds(
    source: Source, target: LayoutStore, opened: Any, tmp_path: Path
) -> None:
    source.image("old", [tar({b"x": data(1), b"y": data(3)})])
    source.image("in", [tar({b"a": data(1), b"b": data(2)}), tar({b"c": data(3)})])
    converted(source, target, "old", "old")
    converted(source, target)
    empty = LayoutStore(tmp_path / "empty", durable=False)
    converted(source, empty)
    with_reuse, without = opened("out"), opened("out", empty)
    assert [layer.diff_id for layer, _ in with_reuse.layers] == [layer.diff_id for layer, _ in without.layers]
    assert [layer.metadata for layer, _ in with_reuse.layers] == [layer.metadata for layer, _ in without.layers]
    assert with_reuse.packs != without.packs


def test_the_same_layer_from_nothing_is_the_same_pack(source: Source, tmp_path: Path, opened: Any) -> None:
    shared = tar({b"a": data(1), b"b": data(2)})
    source.image("one", [shared, tar({b"c": data(3)})])
    source.image("two", [shared, tar({b"d": data(4)})])
    stores = [LayoutStore(tmp_path / name, durable=False) for name in ("one", "two")]
    for store, tag in zip(stores, ("one", "two"), strict=True):
        converted(source, store, tag)
    assert opened("out", stores[0]).packs[0] == opened("out", stores[1]).packs[0]


def test_images_elsewhere_can_be_named(source: Source, target: LayoutStore, opened: Any, tmp_path: Path) -> None:
    """Their packs are copied where they are needed."""
    elsewhere = LayoutStore(tmp_path / "elsewhere", durable=False)
    source.image("old", [tar({b"a": data(1)})])
    source.image("in", [tar({b"b": data(1), b"c": data(2)})])
    converted(source, elsewhere, "old", "old")
    done = converted(source, target, reuse=[(elsewhere, "old")])
    assert (done.packs_new, done.packs_reused) == (1, 1)
    assert opened().files(0) == {b"/b": data(1), b"/c": data(2)}


def test_a_named_image_must_exist(source: Source, target: LayoutStore) -> None:
    source.image("in", [tar({b"a": b"x"})])
    with pytest.raises(NotFoundError):
        converted(source, target, reuse=[(source, "none")])
    assert list(target.tags()) == []


def test_the_most_recent_tags_are_searched(source: Source, target: LayoutStore) -> None:
    dates = [f"2024-01-{day:02}T00:00:00Z" for day in (9, 1, 2, 8, 7)]
    for number, created in enumerate(dates):
        source.image(f"t{number}", [tar({b"a": data(number)})], config={"created": created})
        convert(source, f"t{number}", target, f"t{number}", options=OPTIONS)
    for number, expected in ((0, 1), (3, 1), (4, 1), (1, 0), (2, 0)):
        source.image("probe", [tar({b"z": data(number)})], config={"created": "2000-01-01T00:00:00Z"})
        done = convert(source, "probe", target, None, options=OPTIONS)
        assert done.packs_reused == expected, number


class NoLists(LayoutStore):
    """A place that refuses to list tags; with `closed`, whatever it is asked."""

    closed = False

    def tags(self) -> Iterator[str]:
        raise InvalidError("lists are not for you")

    def has_blob(self, digest: Digest) -> bool:
        if self.closed:
            raise InvalidError("log in first")
        return super().has_blob(digest)


def test_without_a_list_of_tags_the_tags_own_image_is_reused(source: Source, tmp_path: Path) -> None:
    target = NoLists(tmp_path / "refusing", durable=False)
    source.image("in", [tar({b"a": data(1)})])
    assert converted(source, target).packs_reused == 0
    again = converted(source, target)
    assert (again.packs_reused, again.pushed) == (1, 0)


def test_a_place_that_refuses_everything_says_so_before_a_layer_is_read(source: Source, tmp_path: Path) -> None:
    target = NoLists(tmp_path / "refusing", durable=False)
    target.closed = True
    source.image("in", [tar({b"a": data(1)})])
    steps: list[str] = []
    with pytest.raises(InvalidError, match="log in first"):
        converted(source, target, report=lambda now: steps.append(now.stage))
    assert "read" not in steps


def test_a_damaged_index_is_not_reused(source: Source, target: LayoutStore, opened: Any) -> None:
    source.image("in", [tar({b"a": data(1)})])
    converted(source, target)
    read = opened()
    place = read.layers[0][0].packs[0]
    path = target.root / "blobs" / "sha256" / place.pack.hex()
    blob = bytearray(path.read_bytes())
    blob[place.index_offset + 10] ^= 0xFF
    path.chmod(0o644)
    path.write_bytes(blob)
    notes: list[str] = []
    source.image("next", [tar({b"a": data(1), b"b": data(2)})])
    done = converted(source, target, "next", "next", report=lambda now: notes.append(now.what) if now.stage == "note" else None)
    assert done.packs_reused == 0
    assert any("not reused" in note for note in notes)
    assert opened("next").files(0) == {b"/a": data(1), b"/b": data(2)}


def test_through_a_registry(source: Source, opened: Any, tmp_path: Path) -> None:
    """To a registry, a second version beside it, and back: uploaded is what is new, read is what is needed."""
    source.image("v1", [tar({b"a": data(1, 100_000)})])
    source.image("v2", [tar({b"a": data(1, 100_000), b"b": data(2, 5_000)})])
    plain = RegistryConfig(plain_http=True)
    with FakeRegistry() as registry, Registries(lambda host: [RegistryHost(plain)], FixedCredentials()) as registries:
        store = registries.open(parse_reference(f"{registry.host}/x/y"))
        converted(source, store, "v1", "v1")
        registry.forget()
        done = converted(source, store, "v2", "v2")
        uploads = registry.matching("/blobs/uploads/", "PUT")
        assert (len(uploads), done.packs_reused, done.packs_new) == (3, 1, 1)  # metadata, pack, configuration
        assert [exchange.method for exchange in registry.matching("/manifests/v2")][-1] == "PUT"
        copy = LayoutStore(tmp_path / "copy", durable=False)
        manifest, content = store.manifest("v2")
        document = json.loads(content)
        for described in (document["config"], *document["layers"]):
            blob = Descriptor("", from_text(described["digest"]), described["size"])
            with store.open_blob(blob) as stream:
                copy.put_blob(blob, stream)
        copy.put_manifest(manifest, content, "v2")
    assert opened("v2", copy).files(0) == {b"/a": data(1, 100_000), b"/b": data(2, 5_000)}


# The number of packs.


def test_more_layers_than_packs(source: Source, target: LayoutStore, opened: Any) -> None:
    layers = [{b"f%d" % number: data(number, 3000)} for number in range(30)]
    source.image("in", [tar(layer) for layer in layers])
    done = converted(source, target)
    read = opened()
    assert len(read.packs) == PACKS_MAX == done.packs_new
    assert [read.files(number) for number in range(30)] == [{b"/" + n: d for n, d in layer.items()} for layer in layers]


def test_versions_on_versions_never_need_more_packs_than_allowed(source: Source, target: LayoutStore, opened: Any) -> None:
    files: dict[bytes, bytes] = {}
    rewritten = 0
    for version in range(22):
        files[b"f%02d" % version] = data(version, 4000 + 100 * version)
        source.image("in", [tar(files)])
        done = converted(source, target, to="latest")
        read = opened("latest")
        assert read.files(0) == {b"/" + name: content for name, content in files.items()}
        assert done.packs_new + done.packs_reused == len(read.packs) <= PACKS_MAX
        rewritten += done.packs_new == 1 and len(read.packs) == PACKS_MAX
    assert rewritten >= 5


def test_a_corrupt_pack_is_found_when_its_chunks_are_written_anew(source: Source, target: LayoutStore, opened: Any) -> None:
    files: dict[bytes, bytes] = {}
    for version in range(16):
        files[b"f%02d" % version] = data(version, 4000 + 1000 * version)
        source.image("in", [tar(files)])
        converted(source, target, to="latest")
    read = opened("latest")
    smallest = min(read.manifest["layers"][1:], key=lambda layer: layer["size"])
    path = target.root / "blobs" / "sha256" / smallest["digest"][7:]
    blob = bytearray(path.read_bytes())
    blob[200] ^= 0xFF
    path.chmod(0o644)
    path.write_bytes(blob)
    files[b"new"] = data(99)
    source.image("in", [tar(files)])
    with pytest.raises(CorruptError, match=r"chunk .* in pack .* is corrupt"):
        converted(source, target, to="latest")
    assert opened("latest").descriptor.digest == read.descriptor.digest


# Histories.


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        (None, [False, False]),
        ([{"created_by": "a"}, {"created_by": "b", "empty_layer": True}, {"created_by": "c"}], [False, True, False]),
        ([{"created_by": "a"}], [False, False]),
        ([{"created_by": "a"}, {"created_by": "b"}, {"created_by": "c"}], [False, False, True]),
        ("nonsense", [False, False]),
    ],
)
def test_the_history_counts_the_layers(
    source: Source, target: LayoutStore, opened: Any, history: object, expected: list[bool]
) -> None:
    source.image("in", [tar({b"a": b"x"}), tar({b"b": data(1)})], config={"history": history})
    converted(source, target)
    config = opened().config
    assert [bool(entry.get("empty_layer")) for entry in config["history"][: len(expected)]] == expected
    assert all(entry["created"] == "2024-01-02T03:04:05Z" for entry in config["history"][-2:])


def test_an_empty_layer_needs_no_pack(source: Source, target: LayoutStore, opened: Any) -> None:
    source.image("in", [tar({}), tar({b"empty": b""})])
    converted(source, target)
    assert opened().packs == []


# What cannot be converted, and what is left behind then.


def expect(error: type[Exception], says: str, source: Source, target: LayoutStore, tag: str = "in") -> None:
    with pytest.raises(error, match=says) as caught:
        converted(source, target, tag)
    assert "\n" not in str(caught.value)
    assert list(target.tags()) == []


def test_an_image_of_ours(source: Source, target: LayoutStore, tmp_path: Path) -> None:
    source.image("in", [tar({b"a": b"x"})])
    converted(source, target)
    with pytest.raises(InvalidError, match="PuzzleFS image already; copy it with skopeo copy"):
        convert(target, "out", LayoutStore(tmp_path / "x"), "y")


def test_a_wrong_diff_id(source: Source, target: LayoutStore) -> None:
    wrong = {"rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]}}
    source.image("in", [tar({b"a": b"x"})], config=wrong)
    expect(CorruptError, r"layer 1 of .*:in: the tar has the digest .* the configuration says", source, target)


def test_a_layer_too_few_in_the_configuration(source: Source, target: LayoutStore) -> None:
    source.image("in", [tar({b"a": b"x"})], config={"rootfs": {"type": "layers", "diff_ids": []}})
    expect(CorruptError, "has 1 layers, but its configuration lists 0", source, target)


@pytest.mark.parametrize("rootfs", [None, {}, {"diff_ids": "x"}, {"diff_ids": [1]}, {"diff_ids": ["md5:00"]}])
def test_a_configuration_without_diff_ids(source: Source, target: LayoutStore, rootfs: object) -> None:
    source.image("in", [tar({b"a": b"x"})], config={"rootfs": rootfs})
    expect(CorruptError, "the configuration of", source, target)


def test_a_truncated_layer(source: Source, target: LayoutStore) -> None:
    source.image("in", [tar({b"ok": b"x"}), tar({b"a": data(1)})[:5000]])
    expect(CorruptError, r"layer 2 of .*: tar archive ends at byte", source, target)


def test_a_hostile_layer(source: Source, target: LayoutStore) -> None:
    source.image("in", [tar({b"n" * 256: b"x"})])
    expect(InvalidError, r"layer 1 of .*: the layer has a name of 256 bytes", source, target)


@pytest.mark.parametrize(
    "media_type",
    ["application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "application/x-tar", "application/vnd.oci.image.layer.v1.tar+xz"],
)
def test_a_layer_of_another_kind(source: Source, target: LayoutStore, media_type: str) -> None:
    source.image("in", [tar({b"a": b"x"})], types=[media_type])
    expect(UnsupportedError, "only tar, gzip and zstd can be converted", source, target)


def test_an_artifact(source: Source, target: LayoutStore) -> None:
    config = source.put(b"{}", "application/vnd.oci.empty.v1+json")
    source.image("in", [tar({b"a": b"x"})], manifest={"config": config})
    expect(UnsupportedError, "is not a container image", source, target)


def test_an_index_without_images(source: Source, target: LayoutStore) -> None:
    source.put_index("in", [])
    expect(InvalidError, "an index without images", source, target)


def test_a_missing_layer(source: Source, target: LayoutStore) -> None:
    source.image("in", [tar({b"a": b"x"})])
    document = json.loads(source.manifest("in")[1])
    (source.root / "blobs" / "sha256" / document["layers"][0]["digest"][7:]).unlink()
    expect(NotFoundError, "blob", source, target)


def test_a_destination_that_fails_half_way_has_no_image(source: Source, tmp_path: Path) -> None:
    class Full(LayoutStore):
        puts = 0

        def put_blob(self, blob: Descriptor, data: BinaryIO) -> bool:
            Full.puts += 1
            if Full.puts == 3:
                raise UnavailableError("the registry went away")
            return super().put_blob(blob, data)

    source.image("in", [tar({b"a": data(1)}), tar({b"b": data(2)})])
    target = Full(tmp_path / "full", durable=False)
    expect(UnavailableError, "went away", source, target)


def test_temporary_files_are_gone_whatever_happens(source: Source, target: LayoutStore, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    options = Options(cutting=SMALL, workers=2, temporary=scratch)
    source.image("in", [tar({b"a": data(1)})])
    source.image("bad", [tar({b"a": data(1)})[:9000]])
    convert(source, "in", target, "out", options=options)
    assert list(scratch.iterdir()) == []
    with pytest.raises(CorruptError):
        convert(source, "bad", target, "bad", options=options)
    assert list(scratch.iterdir()) == []


def test_progress_reaches_its_end(source: Source, target: LayoutStore) -> None:
    source.image("in", [tar({b"a": data(1, 100_000)})])
    seen: list[Progress] = []
    converted(source, target, report=seen.append)
    ends = {(now.stage, now.what): now for now in seen}
    assert {stage for stage, _ in ends} == {"read", "push"}
    assert all(now.done == now.total for now in ends.values())
    pushed = sum(now.total for (stage, _), now in ends.items() if stage == "push")
    assert pushed > 50_000, "the pack, half of which does not compress, is among it"
