"""Checking an image finds whatever is done to it, and names it; what nobody did anything to is right."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snapshotter.build.image import Options, convert
from snapshotter.build.layout import ROOTFS_TYPE, build_layout, publish_layout
from snapshotter.build.optimize import optimize
from snapshotter.build.push import push
from snapshotter.build.upstream import build_upstream
from snapshotter.build.verify import Verified, verify
from snapshotter.errors import InvalidError, NotFoundError
from snapshotter.format.annotations import (
    DIFF_ID,
    MEDIA_TYPE_METADATA,
    MEDIA_TYPE_PACK,
    PACKS,
    VERITY,
    MetadataLayer,
    parse,
)
from snapshotter.format.compression import decompress
from snapshotter.format.digest import Digest, from_text, sha256, to_text
from snapshotter.format.message import Whole
from snapshotter.format.model import ChunkVerity, DirEntry, FileChunk, Inode, Kind, RootfsContent
from snapshotter.format.pack import PackIndex
from snapshotter.format.verity import verity_digest
from snapshotter.format.writer import encode
from snapshotter.registry.base import Descriptor
from snapshotter.registry.documents import OCI_INDEX, OCI_MANIFEST
from snapshotter.registry.layout import LayoutStore
from snapshotter.registry.platforms import Platform
from tests.support.builds import SMALL
from tests.support.images import write_image
from tests.support.samples import noise

GOLDEN = Path(__file__).parents[2] / "golden" / "upstream"
OPTIONS = Options(cutting=SMALL, workers=2)


@pytest.fixture
def store(tmp_path: Path) -> LayoutStore:
    return LayoutStore(tmp_path / "layout", durable=False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    made = tmp_path / "tree"
    (made / "d").mkdir(parents=True)
    (made / "noise").write_bytes(noise(9000, 1))
    (made / "d" / "text").write_bytes(b"the same words again and again " * 500)
    (made / "d" / "small").write_bytes(b"small")
    os.symlink("text", made / "d" / "link")
    return made


@pytest.fixture
def packed(tree: Path, store: LayoutStore) -> LayoutStore:
    """A layout with an image in our form, ``v``."""
    build_layout(tree, store, "local", options=OPTIONS)
    push(store, "local", store, "v", options=OPTIONS)
    return store


def problems(store: LayoutStore, tag: str = "v") -> list[str]:
    done = verify(store, tag)
    errors = [finding.problem for finding in done.findings if finding.severity == "error"]
    assert len(errors) == done.errors
    return errors


def blob(store: LayoutStore, digest: Digest) -> Path:
    return store.root / "blobs" / "sha256" / digest.hex()


def manifest(store: LayoutStore, tag: str = "v") -> dict[str, Any]:
    document = json.loads(store.manifest(tag)[1])
    assert isinstance(document, dict)
    return document


def layer_of(store: LayoutStore, media_type: str, tag: str = "v") -> dict[str, Any]:
    return next(layer for layer in manifest(store, tag)["layers"] if layer["mediaType"] == media_type)


def layers_of(store: LayoutStore, tag: str, media_type: str) -> list[str]:
    return [layer["digest"] for layer in manifest(store, tag)["layers"] if layer["mediaType"] == media_type]


def put(store: LayoutStore, data: bytes) -> dict[str, Any]:
    store.put_blob(Descriptor("", sha256(data), len(data)), io.BytesIO(data))
    return {"digest": to_text(sha256(data)), "size": len(data)}


def changed(store: LayoutStore, change: Callable[[dict[str, Any]], object]) -> None:
    """Put the image again, with another manifest."""
    document = manifest(store)
    change(document)
    data = json.dumps(document).encode()
    store.put_manifest(Descriptor(OCI_MANIFEST, sha256(data), len(data)), data, "v")


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


# Nothing is wrong.


@pytest.mark.parametrize("compress", [False, True])
def test_a_local_image(tree: Path, store: LayoutStore, compress: bool) -> None:
    build_layout(tree, store, "v", compress=compress, options=OPTIONS)
    build_layout(tree / "d", store, "over", base="v", compress=not compress, options=OPTIONS)
    push(store, "over", store, "pushed", options=OPTIONS)
    for tag in ("v", "over", "pushed"):
        assert verify(store, tag).findings == []


def test_an_image_in_our_form(packed: LayoutStore) -> None:
    done = verify(packed, "v")
    assert done.findings == []
    assert (done.images, done.blobs, done.inodes) == (1, 3, 6)
    assert done.chunks == len(manifest(packed, "local")["layers"]) - 1
    listed = manifest(packed)
    assert done.bytes >= sum(layer["size"] for layer in listed["layers"]) - 1000  # the config, less the indexes


@pytest.mark.parametrize("case", sorted(path.parent.name for path in GOLDEN.glob("*/image")))
def test_what_upstreams_program_wrote(case: str) -> None:
    """Its defects are notes: nothing is wrong with what a reader gets."""
    expected = json.loads((GOLDEN / case / "expect.json").read_text())["images"]
    for tag, image in expected.items():
        done = verify(LayoutStore(GOLDEN / case / "image"), tag)
        assert done.errors == 0, done.findings
        wrong = any("uncompressed chunks have the fs-verity digest" in finding.problem for finding in done.findings)
        assert wrong == bool(image["fs_verity_data"]["wrong_for"])


def test_a_release_of_upstreams_that_states_raw_sizes(tree: Path, store: LayoutStore) -> None:
    build_upstream(tree, store, "v", compress=True)
    total = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file() and not path.is_symlink())

    def state(document: dict[str, Any]) -> None:
        assert len(document["layers"]) == 2
        document["layers"][1]["size"] = total

    changed(store, state)
    done = verify(store, "v")
    assert [finding.severity for finding in done.findings] == ["note"]
    assert "state their raw sizes" in done.findings[0].problem


def test_every_platform_is_checked(tmp_path: Path, tree: Path, packed: LayoutStore) -> None:
    (tree / "more").write_bytes(noise(5000, 3))
    build_layout(tree, packed, "local2", options=OPTIONS)
    push(packed, "local2", packed, "w", options=OPTIONS)
    entries = []
    for tag, architecture in (("v", "amd64"), ("w", "arm64")):
        descriptor, _ = packed.manifest(tag)
        platform = {"os": "linux", "architecture": architecture}
        size, digest = descriptor.size, to_text(descriptor.digest)
        entries.append({"mediaType": descriptor.media_type, "digest": digest, "size": size, "platform": platform})
    data = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    packed.put_manifest(Descriptor(OCI_INDEX, sha256(data), len(data)), data, "both")
    assert verify(packed, "both").images == 2
    victim = from_text(manifest(packed, "w")["layers"][-1]["digest"])
    flip(blob(packed, victim), 100)
    found = verify(packed, "both").findings
    assert found
    assert all("linux/arm64" in finding.image for finding in found)


# Something is.


def test_no_bit_of_any_blob_can_be_flipped(packed: LayoutStore) -> None:
    digests = [manifest(packed)["config"]["digest"], *(layer["digest"] for layer in manifest(packed)["layers"])]
    for digest in digests:
        path = blob(packed, from_text(digest))
        intact = path.read_bytes()
        for at in range(0, len(intact), max(len(intact) // 40, 1)):
            flip(path, at)
            assert problems(packed), (digest, at)
            path.write_bytes(intact)
    assert problems(packed) == []


def test_no_bit_of_a_local_image_can_be_flipped(tree: Path, store: LayoutStore) -> None:
    build_layout(tree, store, "v", compress=True, options=OPTIONS)
    for layer in manifest(store)["layers"]:
        path = blob(store, from_text(layer["digest"]))
        intact = path.read_bytes()
        for at in range(0, len(intact), max(len(intact) // 5, 1)):
            flip(path, at)
            assert problems(store), (layer, at)
            path.write_bytes(intact)
        path.unlink()
        assert problems(store)
        path.write_bytes(intact)


def test_a_damaged_chunk_is_named_with_its_files(packed: LayoutStore) -> None:
    pack = layer_of(packed, MEDIA_TYPE_PACK)
    flip(blob(packed, from_text(pack["digest"])), 20)
    found = problems(packed)
    assert len(found) == 2
    assert found[0].startswith(f"pack {pack['digest']} is corrupt")
    assert f"in pack {pack['digest']} (of /noise)" in found[1]


def test_a_missing_pack(packed: LayoutStore) -> None:
    pack = layer_of(packed, MEDIA_TYPE_PACK)
    blob(packed, from_text(pack["digest"])).unlink()
    assert any(f"has no blob {pack['digest']}" in line for line in problems(packed))
    changed(packed, lambda document: document["layers"].pop())
    assert any("named by a metadata layer, and is no layer of the image" in line for line in problems(packed))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        (VERITY, "0" * 64, "fs-verity digest is not the one that its annotations state"),
        (DIFF_ID, "sha256:" + "0" * 64, "has the diff ID"),
        (VERITY, "nonsense", "not 64 lower-case hexadecimal digits"),
        (PACKS, "", "is in none of the packs that its layer names"),
    ],
)
def test_annotations_that_say_something_else(packed: LayoutStore, key: str, value: str, says: str) -> None:
    changed(packed, lambda document: document["layers"][0]["annotations"].update({key: value}))
    assert any(says in line for line in problems(packed))


def test_an_index_that_is_elsewhere_than_annotated(packed: LayoutStore) -> None:
    def change(document: dict[str, Any]) -> None:
        annotations = document["layers"][0]["annotations"]
        annotations[PACKS] = annotations[PACKS].partition("+")[0] + "+17"

    changed(packed, change)
    assert any("the annotations place its index at" in line for line in problems(packed))


def test_a_configuration_with_other_diff_ids(packed: LayoutStore) -> None:
    config = json.loads(blob(packed, from_text(manifest(packed)["config"]["digest"])).read_bytes())
    config["rootfs"]["diff_ids"][0] = "sha256:" + "1" * 64
    changed(packed, lambda document: document["config"].update(put(packed, json.dumps(config).encode())))
    assert any("the configuration gives layer 1 the diff ID" in line for line in problems(packed))


def test_images_that_are_none(tmp_path: Path, packed: LayoutStore) -> None:
    with pytest.raises(NotFoundError):
        verify(packed, "nothing")
    ordinary = write_image(tmp_path / "ordinary", "v", [b"\0" * 1024])
    with pytest.raises(InvalidError, match="not a PuzzleFS image"):
        verify(LayoutStore(ordinary.layout), "v")


def test_a_converted_image_with_several_layers(tmp_path: Path, store: LayoutStore) -> None:
    from tests.unit.build.test_golden import first, second

    source = write_image(tmp_path / "source", "v", [first(), second()])
    convert(LayoutStore(source.layout), "v", store, "v", options=Options(workers=2))
    assert verify(store, "v").findings == []


def test_a_pack_with_groups(packed: LayoutStore) -> None:
    """What a start profile is kept in: chunks that share a frame."""
    layer = parse(layer_of(packed, MEDIA_TYPE_METADATA)["annotations"])
    assert isinstance(layer, MetadataLayer)
    place = layer.packs[0]
    index = PackIndex.parse(packed.read_range(place.pack, place.index_offset, place.index_length), place.index_offset)
    optimize(packed, "v", packed, "fast", [entry.digest for entry in index], platform=Platform.of_this_machine())
    done = verify(packed, "fast")
    assert (done.findings, done.chunks) == ([], 2 * len(index))
    (pack,) = [name for name in layers_of(packed, "fast", MEDIA_TYPE_PACK) if from_text(name) != place.pack]
    path = blob(packed, from_text(pack))
    flip(path, 100)
    found = problems(packed, "fast")
    assert found[0].startswith(f"pack {pack} is corrupt")
    assert len(found) > 1
    assert all(f"in pack {pack}" in line for line in found[1:])


# Rules of the tree.

RAW = b"some bytes of a file"
CHUNK = sha256(RAW)
RECORDED = ChunkVerity(CHUNK, verity_digest(RAW))
FILE = Inode(2, Kind.FILE, chunks=[FileChunk(CHUNK, 0, len(RAW))])


def directory(ino: int, *entries: tuple[int, bytes]) -> Inode:
    return Inode(ino, Kind.DIR, entries=[DirEntry(number, name) for number, name in entries], look_below=True)


def crafted(store: LayoutStore, *layers: list[Inode], verity: list[ChunkVerity] | None = None) -> Verified:
    put(store, RAW)
    message = encode(RootfsContent(layers, [RECORDED] if verity is None else verity))
    publish_layout(store, "v", Whole(message), [])
    return verify(store, "v")


@pytest.mark.parametrize(
    ("inodes", "says"),
    [
        ([directory(1, (2, b"f"), (3, b"none")), FILE], "b'none' is inode 3, which does not exist"),
        ([directory(1, (2, b"f"), (2, b"f")), FILE], "two entries of the same name"),
        ([directory(1, (2, b"a/b")), FILE], "no name for a directory entry"),
        ([directory(1, (3, b"d"), (4, b"e")), directory(3, (4, b"x")), directory(4)], "more than one parent"),
        ([directory(1, (3, b"d")), directory(3, (1, b"up"))], "directory 1 has more than one parent"),
        ([directory(1, (2, b"f")), FILE, FILE], "several inodes are number 2"),
        ([directory(1, (2, b"f")), directory(7), FILE], "inode 2 stands behind inode 7"),
        ([directory(1, (2, b"f")), replace(FILE, kind=Kind.UNKNOWN, chunks=())], "of no known type"),
        ([directory(1, (2, b"f")), replace(FILE, chunks=[FileChunk(CHUNK, 5, len(RAW))])], "of which files take more"),
        ([directory(1, (2, b"f")), replace(FILE, chunks=[FileChunk(CHUNK, 0, 0)])], "bytes 0+0 of a chunk"),
        ([directory(1, (2, b"f")), replace(FILE, chunks=[FileChunk(sha256(b"?"), 0, 1)])], "is missing"),
        ([directory(1, (2, b"f")), replace(FILE, chunks=[FileChunk(CHUNK, 0, 5, True)])], "seekable chunk"),
    ],
)  # fmt: skip
def test_a_rule_that_is_broken(store: LayoutStore, inodes: list[Inode], says: str) -> None:
    done = crafted(store, inodes)
    assert any(says in finding.problem for finding in done.findings if finding.severity == "error"), done.findings


def test_an_fs_verity_digest_that_is_wrong_missing_or_out_of_order(store: LayoutStore) -> None:
    tree = [directory(1, (2, b"f")), FILE]
    assert "another fs-verity digest" in crafted(store, tree, verity=[ChunkVerity(CHUNK, bytes(32))]).findings[0].problem
    assert "no fs-verity digest is recorded" in crafted(store, tree, verity=[]).findings[0].problem
    pairs = sorted([RECORDED, ChunkVerity(sha256(b"other"), bytes(32))], key=lambda pair: pair.digest, reverse=True)
    assert "out of order" in crafted(store, tree, verity=pairs).findings[0].problem


def test_what_is_not_canonical_is_a_note(store: LayoutStore) -> None:
    done = crafted(store, [directory(1, (2, b"f")), FILE, replace(FILE, ino=3)])
    assert [(finding.severity, finding.problem) for finding in done.findings] == [("note", "1 inodes have no name")]
    message = encode(RootfsContent([[directory(1, (2, b"f")), FILE]], [RECORDED])) + bytes(8)
    publish_layout(store, "v", Whole(message), [])
    assert [finding.severity for finding in verify(store, "v").findings] == ["note"]


def test_a_message_that_is_none(store: LayoutStore) -> None:
    publish_layout(store, "v", Whole(b"nonsense" * 10), [])
    assert "malformed Cap'n Proto message" in problems(store)[0]
    assert layer_of(store, ROOTFS_TYPE)["size"] == 80


def test_a_metadata_layer_that_does_not_decode(packed: LayoutStore) -> None:
    layer = layer_of(packed, MEDIA_TYPE_METADATA)
    assert decompress(blob(packed, from_text(layer["digest"])).read_bytes(), 1 << 30)
    changed(packed, lambda document: document["layers"][0].update(put(packed, b"not zstd")))
    assert any("annotations are those of" in line for line in problems(packed))
