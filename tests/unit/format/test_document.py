"""docs/format.md is enough to read an image and to cut a file: what reads and cuts here is written from it.

Nothing of ours is used for that; what is imported of ours makes the images and cuts that it is tried on.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import pytest
import zstandard

from snapshotter.build.chunk import Cutter, Cutting, Memory
from snapshotter.build.layout import build_layout
from snapshotter.build.push import push
from snapshotter.registry.layout import LayoutStore

GOLDEN = Path(__file__).parents[2] / "golden" / "upstream"
TYPES = ["unknown", "fifo", "chr", "dir", "blk", "file", "lnk", "sock", "wht"]


class Message:
    """Section 3: a Cap'n Proto message. A place is (segment, word)."""

    def __init__(self, data: bytes) -> None:
        count = struct.unpack_from("<I", data)[0] + 1
        lengths = struct.unpack_from(f"<{count}I", data, 4)
        at = (4 + 4 * count + 7) // 8 * 8
        self.segments = []
        for length in lengths:
            self.segments.append(data[at : at + 8 * length])
            at += 8 * length

    def follow(self, segment: int, word: int) -> tuple[int, int, int] | None:
        """The object that the pointer there names: its segment, its first word, the pointer's upper half."""
        (pointer,) = struct.unpack_from("<Q", self.segments[segment], 8 * word)
        if not pointer:
            return None
        if pointer & 3 == 2:  # single far
            segment, word = pointer >> 32, pointer >> 3 & 0x1FFFFFFF
            (pointer,) = struct.unpack_from("<Q", self.segments[segment], 8 * word)
        offset = (pointer & 0xFFFFFFFF) >> 2
        return segment, word + 1 + (offset - (1 << 30) if offset >> 29 else offset), pointer >> 32

    def data(self, segment: int, word: int) -> bytes:
        found = self.follow(segment, word)
        return b"" if found is None else self.segments[found[0]][8 * found[1] :][: found[2] >> 3]

    def structs(self, segment: int, word: int) -> Iterator[tuple[int, int, int]]:
        """Of each struct of a list: its segment, its first word, the word of its first pointer."""
        found = self.follow(segment, word)
        if found is not None:
            segment, word, _ = found
            tag, sizes = struct.unpack_from("<II", self.segments[segment], 8 * word)
            words, pointers = sizes & 0xFFFF, sizes >> 16
            for number in range(tag >> 2):
                start = word + 1 + number * (words + pointers)
                yield segment, start, start + words

    def numbers(self, segment: int, word: int, code: str) -> tuple[int, ...]:
        found = self.follow(segment, word)
        assert found is not None
        return struct.unpack_from(f"<{found[2] >> 3}{code}", self.segments[found[0]], 8 * found[1])

    def fields(self, segment: int, word: int, layout: str) -> tuple[int, ...]:
        return struct.unpack_from("<" + layout, self.segments[segment], 8 * word)


def read_rootfs(data: bytes) -> dict[int, dict[str, Any]]:
    """The inodes of a message, newest layer first, by number."""
    message = Message(data)
    root = message.follow(0, 0)
    assert root is not None
    assert message.fields(root[0], root[1], "Q") == (3,)
    inodes: dict[int, dict[str, Any]] = {}
    for segment, _, at in message.structs(root[0], root[1] + (root[2] & 0xFFFF)):
        for place, word, pointers in message.structs(segment, at):
            ino, kind, permissions, uid, gid = message.fields(place, word, "QHHII")
            inode: dict[str, Any] = {"type": TYPES[kind], "mode": permissions, "uid": uid, "gid": gid}
            found = message.follow(place, pointers)
            if kind == 3 and found is not None:
                entries = message.structs(found[0], found[1] + (found[2] & 0xFFFF))
                inode["entries"] = [(message.data(s, p), message.fields(s, w, "Q")[0]) for s, w, p in entries]
            elif kind in (2, 4) and found is not None:
                inode["device"] = message.fields(found[0], found[1], "QQ")
            elif kind == 5:
                inode["chunks"] = []
                for s, w, p in message.structs(place, pointers):
                    blob = message.follow(s, p)
                    assert blob is not None
                    offset, flags = message.fields(blob[0], blob[1], "QQ")
                    digest = message.data(blob[0], blob[1] + (blob[2] & 0xFFFF))
                    inode["chunks"].append([digest.hex(), offset, message.fields(s, w, "Q")[0], bool(flags & 1)])
            additional = message.follow(place, pointers + 1)
            if additional is not None:
                rows = message.structs(additional[0], additional[1])
                inode["xattrs"] = {message.data(s, p): message.data(s, p + 1) for s, _, p in rows}
                inode["target"] = message.data(additional[0], additional[1] + 1)
            inodes.setdefault(ino, inode)
    return inodes


def blob(layout: Path, digest: str) -> bytes:
    return (layout / "blobs" / digest.replace(":", "/")).read_bytes()


def manifest(layout: Path, tag: str) -> dict[str, Any]:
    index = json.loads((layout / "index.json").read_bytes())
    (entry,) = [e for e in index["manifests"] if e["annotations"]["org.opencontainers.image.ref.name"] == tag]
    document: dict[str, Any] = json.loads(blob(layout, entry["digest"]))
    return document


def listing(inodes: dict[int, dict[str, Any]]) -> dict[bytes, tuple[int, dict[str, Any]]]:
    """The number and inode at every path; of several layers nothing shows through, as upstream's directories look not below."""
    found = {b"/": (1, inodes[1])}
    pending = [(b"", 1)]
    while pending:
        prefix, directory = pending.pop()
        for name, number in inodes[directory].get("entries", []):
            found[prefix + b"/" + name] = (number, inodes[number])
            pending.append((prefix + b"/" + name, number))
    return found


@pytest.mark.parametrize("case", ["basic", "basic-zstd", "mixed-zstd", "one-empty-file", "empty", "delta"])
def test_a_golden_image_is_read(case: str) -> None:
    """Every field of every row that upstream's own reader gives, and every chunk has the digest that its name says."""
    layout = GOLDEN / case / "image"
    for tag, expected in json.loads((GOLDEN / case / "expect.json").read_text())["images"].items():
        inodes = read_rootfs(blob(layout, manifest(layout, tag)["layers"][0]["digest"]))
        found = listing(inodes)
        rows = {unquote_to_bytes(row["path"]): row for row in expected["tree"]}
        assert found.keys() == rows.keys()
        for path, row in rows.items():
            number, inode = found[path]
            assert [number, inode["type"], f"{inode['mode']:04o}", inode["uid"], inode["gid"]] == [
                row[key] for key in ("ino", "type", "mode", "uid", "gid")
            ]
            assert inode.get("chunks", []) == row.get("chunks", [])
            assert inode.get("target", b"") == unquote_to_bytes(row.get("target", ""))
            assert list(inode.get("device", ())) == row.get("device", [])
            xattrs = {unquote_to_bytes(key): bytes.fromhex(value) for key, value in row.get("xattrs", [])}
            assert inode.get("xattrs", {}) == xattrs
        for digest in {chunk[0] for inode in inodes.values() for chunk in inode.get("chunks", [])}:
            assert hashlib.sha256(blob(layout, f"sha256:{digest}")).hexdigest() == digest


def test_a_message_of_several_segments_is_read() -> None:
    """3,000 names, far pointers between segments."""
    layout = GOLDEN / "large-directory" / "image"
    data = blob(layout, manifest(layout, "v0")["layers"][0]["digest"])
    assert len(Message(data).segments) == 5
    assert len(listing(read_rootfs(data))) == 3003


def read_pack(pack: bytes) -> dict[str, bytes]:
    """Section 4: every chunk of a pack, decoded."""
    magic, version, length, offset = struct.unpack("<8sIIQ", pack[-24:])
    assert (pack[:8], magic, version, offset + length + 24) == (b"PZFSPACK", b"PZFSPACK", 1, len(pack))
    message = Message(zstandard.ZstdDecompressor().decompress(pack[offset : offset + length]))
    root = message.follow(0, 0)
    assert root is not None
    segment, word, _ = root
    assert message.fields(segment, word, "I") == (1,)
    digests = message.data(segment, word + 1)
    columns = [message.numbers(segment, word + 1 + number, code) for number, code in ((1, "I"), (2, "Q"), (3, "I"), (4, "B"))]
    chunks = {}
    for number, (raw, start, stored, codec) in enumerate(zip(*columns, strict=True)):
        data = pack[start : start + stored]
        data = zstandard.ZstdDecompressor().decompress(data) if codec == 1 else data
        assert len(data) == raw
        chunks[digests[32 * number : 32 * number + 32].hex()] = data
    return chunks


def test_an_image_in_packs_is_read(tmp_path: Path) -> None:
    """Built by us, read by what the document says."""
    files = {b"large": random.Random(1).randbytes(300_000), b"small": b"small", b"text": b"words and " * 20_000, b"empty": b""}
    (tmp_path / "tree").mkdir()
    for name, data in files.items():
        (tmp_path / "tree" / name.decode()).write_bytes(data)
    store = LayoutStore(tmp_path / "image", durable=False)
    build_layout(tmp_path / "tree", store, "local")
    push(store, "local", store, "v")
    layers = manifest(tmp_path / "image", "v")["layers"]
    message = zstandard.ZstdDecompressor().decompress(blob(tmp_path / "image", layers[0]["digest"]))
    diff_id = layers[0]["annotations"]["containerd.io/snapshot/puzzlefs.diff-id"]
    assert "sha256:" + hashlib.sha256(message).hexdigest() == diff_id
    chunks: dict[str, bytes] = {}
    for layer in layers[1:]:
        chunks |= read_pack(blob(tmp_path / "image", layer["digest"]))
    assert all(hashlib.sha256(data).hexdigest() == name for name, data in chunks.items())
    inodes = read_rootfs(message)
    for name, number in inodes[1]["entries"]:
        parts = inodes[number]["chunks"]
        assert b"".join(chunks[digest][offset : offset + length] for digest, offset, length, _ in parts) == files[name]


GEAR = [int.from_bytes(hashlib.md5(bytes([i]) * 64).digest()[:8], "big") for i in range(256)]


class Sizes(NamedTuple):
    minimum: int
    average: int
    maximum: int
    before: int
    after: int


USUAL = Sizes(16384, 65536, 262144, 0x0000D90703537000, 0x0000D90F03530000)
LARGE = Sizes(65536, 262144, 1048576, 0x0000D91707537000, 0x0000D90703537000)


def cut(data: bytes, sizes: Sizes) -> int:
    """Section 2: the length of the first chunk."""
    n = len(data)
    if n <= sizes.minimum:
        return n
    center = sizes.average
    if n > sizes.maximum:
        n = sizes.maximum
    elif n < center:
        center = n
    h = 0
    for i in range(sizes.minimum // 2, n // 2):
        mask = sizes.before if i < center // 2 else sizes.after
        h = ((h << 2) + (GEAR[data[2 * i]] << 1)) % (1 << 64)
        if not h & mask << 1:
            return 2 * i
        h = (h + GEAR[data[2 * i + 1]]) % (1 << 64)
        if not h & mask:
            return 2 * i + 1
    return n


@pytest.mark.parametrize(("cutting", "sizes"), [(Cutting(), USUAL), (Cutting().of_large(), LARGE)])
def test_a_stream_is_cut(cutting: Cutting, sizes: Sizes) -> None:
    """As ours cuts it: data of several kinds, and tails of every parity."""
    cutter, memory = Cutter(cutting), Memory(cutting.maximum)
    for seed, size in ((1, 400_001), (2, 70_000), (3, 16_385), (4, 16_384), (5, 65_537)):
        data = random.Random(seed).randbytes(size)
        for stream in (data, data[: size // 2] + bytes(100_000) + b"\0" + data):
            expected = []
            at = 0
            while at < len(stream):
                expected.append(cut(stream[at : at + sizes.maximum + 1], sizes))
                at += expected[-1]
            assert [len(memory.take(length)) for length, _ in cutter.cut(io.BytesIO(stream), memory)] == expected


def test_large_files_are_those_of_128_mib() -> None:
    assert Cutting().large == 134_217_728
