"""Local images in upstream's layout, ours and upstream's own, and the way from there to a registry."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snapshotter.build.documents import LAYERS_MAX
from snapshotter.build.entries import from_rootfs, number
from snapshotter.build.image import Options
from snapshotter.build.layout import FILEDATA_TYPE, FILEDATA_ZSTD_TYPE, ROOTFS_TYPE, VERITY_ANNOTATION, build_layout
from snapshotter.build.push import push
from snapshotter.errors import CorruptError, FailedPreconditionError, InvalidError, NotFoundError
from snapshotter.format.annotations import MetadataLayer, parse
from snapshotter.format.compression import decode_chunk, decode_seekable, decompress, encode_seekable
from snapshotter.format.digest import Digest, from_text, sha256, to_text
from snapshotter.format.model import CHUNK_MAX, ChunkVerity, DirEntry, FileChunk, Inode, Kind, RootfsContent
from snapshotter.format.pack import PackIndex
from snapshotter.format.rootfs import Rootfs
from snapshotter.format.verity import verity_digest
from snapshotter.format.writer import encode
from snapshotter.registry.base import Descriptor
from snapshotter.registry.layout import LayoutStore
from tests.support.builds import SMALL
from tests.support.chunks import some_chunks
from tests.support.samples import noise

GOLDEN = Path(__file__).parents[2] / "golden" / "upstream"
OPTIONS = Options(cutting=SMALL, workers=2)


@pytest.fixture
def layout(tmp_path: Path) -> LayoutStore:
    return LayoutStore(tmp_path / "layout", durable=False)


@pytest.fixture
def target(tmp_path: Path) -> LayoutStore:
    return LayoutStore(tmp_path / "target", durable=False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    made = tmp_path / "tree"
    (made / "d").mkdir(parents=True)
    noise, text = some_chunks(2, 7, 9000)[1], b"the same words again and again " * 500
    (made / "noise").write_bytes(noise)
    (made / "text").write_bytes(text)
    (made / "d" / "small").write_bytes(b"small")
    (made / "d" / "again").write_bytes(text)
    os.symlink("text", made / "link")
    for path in (made / "d", made):
        os.utime(path, ns=(5, 1_700_000_000_123_456_789))
    return made


def blob(store: LayoutStore, digest: Digest) -> bytes:
    return (store.root / "blobs" / "sha256" / digest.hex()).read_bytes()


def stored_manifest(store: LayoutStore, tag: str) -> dict[str, Any]:
    document = json.loads(store.manifest(tag)[1])
    assert isinstance(document, dict)
    return document


def message_of(store: LayoutStore, tag: str) -> bytes:
    """The metadata of an image in either form."""
    layer = stored_manifest(store, tag)["layers"][0]
    stored = blob(store, from_text(layer["digest"]))
    return stored if layer["mediaType"] == ROOTFS_TYPE else decompress(stored, 1 << 30)


def files(rootfs: Rootfs, chunk: Any) -> dict[bytes, bytes]:
    """The regular files by path; `chunk` gives the raw bytes of a `FileChunk`."""
    found: dict[bytes, bytes] = {}
    pending = [(b"", 1)]
    while pending:
        path, ino = pending.pop()
        inode = rootfs.inode(ino)
        pending += [(path + b"/" + entry.name, entry.ino) for entry in inode.entries]
        if inode.kind is Kind.FILE:
            found[path] = b"".join(chunk(part)[part.offset : part.offset + part.length] for part in inode.chunks)
    return found


def layout_files(store: LayoutStore, tag: str) -> dict[bytes, bytes]:
    def chunk(part: FileChunk) -> bytes:
        stored = blob(store, part.digest)
        return decode_seekable(stored, CHUNK_MAX) if part.compressed else stored

    rootfs = Rootfs.open(message_of(store, tag))
    found = files(rootfs, chunk)
    rootfs.close()
    return found


def pushed_files(store: LayoutStore, tag: str) -> dict[bytes, bytes]:
    labels = parse(stored_manifest(store, tag)["layers"][0]["annotations"])
    assert isinstance(labels, MetadataLayer)
    indexes = [
        (place.pack, PackIndex.parse(store.read_range(place.pack, place.index_offset, place.index_length), place.index_offset))
        for place in labels.packs
    ]

    def chunk(part: FileChunk) -> bytes:
        assert not part.compressed
        for pack, index in indexes:
            entry = index.find(part.digest)
            if entry is not None:
                stored = store.read_range(pack, entry.offset, entry.stored_length)
                return decode_chunk(entry.codec, stored, entry.raw_length)
        raise AssertionError("a chunk is in no pack")

    message = message_of(store, tag)
    rootfs = Rootfs.open(message)
    found = files(rootfs, chunk)
    for verity in rootfs.verities():
        raw = chunk(FileChunk(verity.digest, 0, 0))
        assert (sha256(raw), verity_digest(raw)) == (verity.digest, verity.verity)
    rootfs.close()
    return found


@pytest.mark.parametrize("compress", [False, True])
def test_a_layout_is_as_upstream_writes_it(tree: Path, layout: LayoutStore, compress: bool) -> None:
    built = build_layout(tree, layout, "v1", compress=compress, options=OPTIONS)
    data = layout.manifest("v1")[1]
    assert (built.manifest.digest, built.verity) == (sha256(data), verity_digest(data))
    manifest = json.loads(data)
    assert "mediaType" not in manifest
    empty = b"{}"
    assert manifest["config"] == {
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": to_text(sha256(empty)),
        "size": 2,
        "data": "e30=",
    }
    assert blob(layout, sha256(empty)) == empty
    rootfs, *chunks = manifest["layers"]
    message = blob(layout, from_text(rootfs["digest"]))
    assert rootfs["annotations"] == {VERITY_ANNOTATION: verity_digest(message).hex()}
    assert {chunk["mediaType"] for chunk in chunks} == {FILEDATA_ZSTD_TYPE if compress else FILEDATA_TYPE}
    assert len({chunk["digest"] for chunk in chunks}) == len(chunks)
    for chunk in chunks:
        stored = blob(layout, from_text(chunk["digest"]))
        assert (to_text(sha256(stored)), len(stored)) == (chunk["digest"], chunk["size"])
    index = json.loads((layout.root / "index.json").read_bytes())
    assert index["manifests"][0]["annotations"] == {"org.opencontainers.image.ref.name": "v1"}
    assert set(index["manifests"][0]["platform"]) == {"architecture", "os"}


@pytest.mark.parametrize("compress", [False, True])
def test_what_is_built_holds_the_tree(tree: Path, layout: LayoutStore, compress: bool) -> None:
    build_layout(tree, layout, "v1", compress=compress, options=OPTIONS)
    assert layout_files(layout, "v1") == {
        b"/" + os.fsencode(path.relative_to(tree)): path.read_bytes()
        for path in tree.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    rootfs = Rootfs.open(message_of(layout, "v1"))
    assert (rootfs.inode(1).mtime, rootfs.inode(1).mtime_nsec) == (1_700_000_000, 123_456_789)
    flags = {part.compressed for inode in rootfs.inodes() for part in inode.chunks}
    assert flags == ({True, False} if compress else {False})
    for entry in rootfs.verities():
        assert verity_digest(blob(layout, entry.digest)) == entry.verity  # of what is stored, raw chunks under -c included
    rootfs.close()


def test_the_same_tree_is_the_same_image(tree: Path, layout: LayoutStore, target: LayoutStore) -> None:
    first = build_layout(tree, layout, "v1", options=OPTIONS)
    assert build_layout(tree, target, "other", options=OPTIONS) == first


def test_a_build_that_fails_sets_no_tag(tmp_path: Path, layout: LayoutStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFoundError, match="no such directory"):
        build_layout(tmp_path / "none", layout, "v1")
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "f").write_bytes(b"x" * 3000)
    real = os.open

    def gone(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if str(path).endswith("t/f'"):
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", gone)
    with pytest.raises(FailedPreconditionError, match="t/f: Permission denied"):
        build_layout(tmp_path / "t", layout, "v1", options=OPTIONS)
    monkeypatch.undo()
    assert not (layout.root / "index.json").exists() or list(layout.tags()) == []


def test_compressed_or_not_it_is_pushed_as_the_same_image(tree: Path, layout: LayoutStore, target: LayoutStore) -> None:
    build_layout(tree, layout, "raw", options=OPTIONS)
    build_layout(tree, layout, "zstd", compress=True, options=OPTIONS)
    first = push(layout, "raw", target, "one", destination_name="r/x:1", options=OPTIONS)
    second = push(layout, "zstd", target, "two", destination_name="r/x:1", options=OPTIONS)
    assert first.manifest == second.manifest
    assert (second.pushed, second.packs_reused) == (0, 1)
    assert message_of(target, "one") == message_of(layout, "raw")
    assert pushed_files(target, "two") == layout_files(layout, "raw")
    config = json.loads(blob(target, from_text(stored_manifest(target, "one")["config"]["digest"])))
    assert config["os"] == "linux"
    assert len(config["history"]) == len(config["rootfs"]["diff_ids"]) == 2


def test_an_image_of_many_chunks_is_pushed(tmp_path: Path, layout: LayoutStore, target: LayoutStore) -> None:
    """The manifest lists every chunk: more descriptors than an ordinary image may have layers."""
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "noise").write_bytes(noise(800_000, 7))
    build_layout(tmp_path / "big", layout, "v1", options=replace(OPTIONS, cutting=replace(SMALL, large=None)))
    assert len(stored_manifest(layout, "v1")["layers"]) > LAYERS_MAX
    push(layout, "v1", target, "v1", options=OPTIONS)
    assert pushed_files(target, "v1") == layout_files(layout, "v1")


GOLDEN_TAGS = [
    (case, tag)
    for case, tags in {
        "basic": ["v0"],
        "basic-zstd": ["v0"],
        "mixed-zstd": ["v0"],
        "delta": ["v0", "v1", "v2"],
        "delta-zstd": ["v0", "v1", "v2"],
        "empty": ["v0"],
        "one-empty-file": ["v0"],
        "large-directory": ["v0"],
    }.items()
    for tag in tags
]


@pytest.mark.parametrize(("case", "tag"), GOLDEN_TAGS)
def test_what_upstreams_program_built_is_pushed(target: LayoutStore, case: str, tag: str) -> None:
    upstream = LayoutStore(GOLDEN / case / "image")
    push(upstream, tag, target, "out", options=Options(workers=2))
    assert pushed_files(target, "out") == layout_files(upstream, tag)
    before, after = (Rootfs.open(message_of(store, name)) for store, name in ((upstream, tag), (target, "out")))
    one, other = number(from_rootfs(before)), number(from_rootfs(after))
    assert len(one) == len(other)
    same = [(node.kind, node.permissions, node.uid, node.gid, node.xattrs, node.target) for _, node in one]
    assert same == [(node.kind, node.permissions, node.uid, node.gid, node.xattrs, node.target) for _, node in other]
    if "zstd" not in case:
        assert message_of(target, "out") == message_of(upstream, tag)
    before.close()
    after.close()


# What cannot be pushed.


def crafted(layout: LayoutStore, chunks: dict[bytes, bytes], parts: list[FileChunk], *, verity: bytes | None = None) -> None:
    inodes = [Inode(1, Kind.DIR, entries=[DirEntry(2, b"f")]), Inode(2, Kind.FILE, chunks=parts)]
    known = [ChunkVerity(Digest(d), verity or verity_digest(raw)) for d, raw in sorted(chunks.items())]
    message = encode(RootfsContent((inodes,), known))
    for raw in chunks.values():
        layout.put_blob(Descriptor("", sha256(raw), len(raw)), io.BytesIO(raw))
    rootfs = Descriptor("", sha256(message), len(message))
    layout.put_blob(rootfs, io.BytesIO(message))
    config = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": to_text(sha256(b"{}")), "size": 2}
    listed = [{"mediaType": ROOTFS_TYPE, "digest": to_text(rootfs.digest), "size": rootfs.size}]
    data = json.dumps({"schemaVersion": 2, "config": config, "layers": listed}).encode()
    layout.put_manifest(Descriptor("application/vnd.oci.image.manifest.v1+json", sha256(data), len(data)), data, "v")


def test_wrong_verity_digests_are_put_right(layout: LayoutStore, target: LayoutStore) -> None:
    """Upstream's program records wrong ones for what it could not compress."""
    raw = some_chunks(1)[0]
    crafted(layout, {sha256(raw): raw}, [FileChunk(sha256(raw), 0, len(raw))], verity=bytes(32))
    push(layout, "v", target, "out")
    assert pushed_files(target, "out") == {b"/f": raw}


@pytest.mark.parametrize(
    ("part", "error", "says"),
    [
        (FileChunk(sha256(b"0123456789"), 5, 6), CorruptError, "beyond the end of its chunk"),
        (FileChunk(sha256(b"elsewhere"), 0, 9), NotFoundError, "is not in"),
        (FileChunk(sha256(b"0123456789"), 0, 10, True), CorruptError, "is corrupt"),
    ],
)
def test_files_that_cannot_be_read(
    layout: LayoutStore, target: LayoutStore, part: FileChunk, error: type[Exception], says: str
) -> None:
    crafted(layout, {sha256(b"0123456789"): b"0123456789"}, [part])
    with pytest.raises(error, match=says):
        push(layout, "v", target, "out")
    assert not (target.root / "index.json").exists()


def test_a_name_used_for_raw_and_for_compressed_bytes(layout: LayoutStore, target: LayoutStore) -> None:
    """Two readings of one blob stay two chunks."""
    stored = encode_seekable(b"words " * 1000)
    assert stored is not None
    part = FileChunk(sha256(stored), 0, len(stored))
    crafted(layout, {sha256(stored): stored}, [part, replace(part, compressed=True, length=6000)])
    push(layout, "v", target, "out")
    assert pushed_files(target, "out") == {b"/f": stored + b"words " * 1000}


def test_what_is_no_local_image(layout: LayoutStore, target: LayoutStore, tree: Path) -> None:
    build_layout(tree, layout, "v", options=OPTIONS)
    push(layout, "v", target, "out", options=OPTIONS)
    with pytest.raises(InvalidError, match="not an image that puzzlefs build made"):
        push(target, "out", target, "again")

    class Registry:
        name = "registry.example/x"

    with pytest.raises(InvalidError, match="is no local image"):
        push(Registry(), "v", target, "out")  # type: ignore[arg-type]


def test_a_changed_message_is_found(layout: LayoutStore, target: LayoutStore, tree: Path) -> None:
    build_layout(tree, layout, "v", options=OPTIONS)
    document = stored_manifest(layout, "v")
    document["layers"][0]["annotations"][VERITY_ANNOTATION] = "00" * 32
    data = json.dumps(document).encode()
    layout.put_manifest(Descriptor("application/vnd.oci.image.manifest.v1+json", sha256(data), len(data)), data, "w")
    with pytest.raises(CorruptError, match="fs-verity digest of its metadata"):
        push(layout, "w", target, "out")
