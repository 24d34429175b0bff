"""Upstream's own images (tests/golden/upstream): read as its reader reads them, written again byte for byte."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest

from snapshotter.format.codec import RootfsMessage
from snapshotter.format.compression import decode_seekable, encode_seekable
from snapshotter.format.digest import Digest
from snapshotter.format.model import CHUNK_MAX, ROOT_INO, Inode, Kind, RootfsContent
from snapshotter.format.rootfs import Rootfs
from snapshotter.format.verity import verity_digest
from snapshotter.format.writer import encode

GOLDEN = Path(__file__).parents[2] / "golden" / "upstream"
VERITY_ANNOTATION = "io.puzzlefsoci.puzzlefs.puzzlefs_verity_root_hash"


def blob(case: str, digest: str) -> bytes:
    return (GOLDEN / case / "image" / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()


def tags() -> Iterator[tuple[str, str, str]]:
    for index in sorted(GOLDEN.glob("*/image/index.json")):
        for manifest in json.loads(index.read_text())["manifests"]:
            tag = manifest["annotations"]["org.opencontainers.image.ref.name"]
            yield index.parts[-3], tag, manifest["digest"]


CASES = list(tags())


def manifest_of(case: str, digest: str) -> Any:
    return json.loads(blob(case, digest))


@pytest.mark.parametrize(("case", "tag", "digest"), CASES)
def test_a_message_that_is_read_and_written_again_is_the_same(case: str, tag: str, digest: str) -> None:
    data = blob(case, manifest_of(case, digest)["layers"][0]["digest"])
    message = RootfsMessage(data)
    content = RootfsContent(
        layers=[[message.inode_at(layer, row) for row in range(message.inode_count(layer))] for layer in range(message.layers)],
        verity=[message.verity_at(row) for row in range(message.verity_count)],
    )
    assert encode(content, times=False) == data


@pytest.mark.parametrize(("case", "tag", "digest"), CASES)
def test_the_metadata_has_the_fs_verity_digest_that_its_manifest_names(case: str, tag: str, digest: str) -> None:
    rootfs = manifest_of(case, digest)["layers"][0]
    assert verity_digest(blob(case, rootfs["digest"])).hex() == rootfs["annotations"][VERITY_ANNOTATION]


def test_the_cases_are_all_there() -> None:
    assert {case for case, _, _ in CASES} >= {
        "basic",
        "basic-zstd",
        "delta",
        "delta-zstd",
        "empty",
        "large-directory",
        "mixed-zstd",
    }


def listing(rootfs: Rootfs) -> dict[bytes, Inode]:
    """Every path and its inode, as a reader of the whole image sees them."""
    found: dict[bytes, Inode] = {b"/": rootfs.inode(ROOT_INO)}

    def visit(prefix: bytes, ino: int) -> None:
        for entry in rootfs.inode(ino).entries:
            path = prefix + b"/" + entry.name
            found[path] = rootfs.inode(entry.ino)
            if found[path].kind is Kind.DIR:
                visit(path, entry.ino)

    visit(b"", ROOT_INO)
    return found


def as_expected(path: bytes, inode: Inode) -> dict[str, Any]:
    """`inode` in the words of expect.json, names not encoded."""
    said: dict[str, Any] = {
        "path": path,
        "ino": inode.ino,
        "type": inode.kind.name.lower(),
        "mode": f"{inode.permissions:04o}",
        "uid": inode.uid,
        "gid": inode.gid,
    }
    if inode.kind is Kind.FILE:
        said["size"] = inode.size
        said["chunks"] = [[c.digest.hex(), c.offset, c.length, c.compressed] for c in inode.chunks]
    if inode.kind in (Kind.CHR, Kind.BLK):
        said["device"] = list(inode.device)
    if inode.target is not None:
        said["target"] = inode.target
    if inode.xattrs:
        said["xattrs"] = [[x.key, x.value.hex()] for x in inode.xattrs]
    return said


def decoded(row: dict[str, Any]) -> dict[str, Any]:
    """A row of expect.json with its percent-encoded names as bytes, without the number of entries."""
    row = {
        key: unquote_to_bytes(value) if key in ("path", "target") else value for key, value in row.items() if key != "entries"
    }
    if "xattrs" in row:
        row["xattrs"] = [[unquote_to_bytes(key), value] for key, value in row["xattrs"]]
    return row


@pytest.mark.parametrize(("case", "tag", "digest"), [c for c in CASES if c[0] != "large-directory"])
def test_every_name_is_found_with_what_upstreams_reader_finds(case: str, tag: str, digest: str) -> None:
    rows = json.loads((GOLDEN / case / "expect.json").read_text())["images"][tag]["tree"]
    # Upstream lists whiteouts too, and counts them as entries; a reader of the whole image sees neither.
    expected = {row["path"]: row for row in map(decoded, rows) if row["type"] != "wht"}
    rootfs = Rootfs.open(blob(case, manifest_of(case, digest)["layers"][0]["digest"]))
    found = {path: as_expected(path, inode) for path, inode in listing(rootfs).items()}
    assert found == expected


def test_a_large_directory_is_listed_whole() -> None:
    (digest,) = (digest for case, _, digest in CASES if case == "large-directory")
    rootfs = Rootfs.open(blob("large-directory", manifest_of("large-directory", digest)["layers"][0]["digest"]))
    assert len(listing(rootfs)) == 3003


@pytest.mark.parametrize(("case", "tag", "digest"), CASES)
def test_chunks_decode_and_their_verity_is_what_the_metadata_says(case: str, tag: str, digest: str) -> None:
    image = json.loads((GOLDEN / case / "expect.json").read_text())["images"][tag]
    wrong = {name.removeprefix("sha256:") for name in image["fs_verity_data"]["wrong_for"]}
    manifest = manifest_of(case, digest)
    rootfs = Rootfs.open(blob(case, manifest["layers"][0]["digest"]))
    compressed = {c.digest: c.compressed for inode in rootfs.inodes() for c in inode.chunks}
    for layer in manifest["layers"][1:]:
        name = Digest(bytes.fromhex(layer["digest"].removeprefix("sha256:")))
        stored = blob(case, layer["digest"])
        recorded = rootfs.verity(name)
        assert recorded is not None
        assert (recorded == verity_digest(stored)) == (name.hex() not in wrong)
        if compressed.get(name):
            assert encode_seekable(decode_seekable(stored, CHUNK_MAX)) == stored
