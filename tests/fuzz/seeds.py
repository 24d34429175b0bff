"""Writes the small inputs that fuzzing begins with: ``python -m tests.fuzz.seeds``. What hunts found is kept beside them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

from snapshotter.build.documents import new_index, new_manifest
from snapshotter.format.annotations import MEDIA_TYPE_METADATA, MEDIA_TYPE_PACK, MetadataLayer, PackLayer, PackPlace
from snapshotter.format.compression import compress, encode_seekable
from snapshotter.format.digest import sha256
from snapshotter.format.model import ChunkVerity, DirEntry, FileChunk, Inode, Kind, RootfsContent, Xattr
from snapshotter.format.pack import FOOTER_SIZE, parse_footer
from snapshotter.format.writer import encode
from snapshotter.registry import peerprotocol
from snapshotter.registry.base import Descriptor
from tests.support import modules, programs
from tests.support.chunks import make_pack, some_chunks
from tests.support.images import Layer

CORPUS = Path(__file__).parent / "corpus"

CHUNK = sha256(b"x")
ENTRIES = [DirEntry(n, b"name %d" % n) for n in range(2, 10)]
TREE = RootfsContent(
    [[
        Inode(1, Kind.DIR, mtime=-5, mtime_nsec=7, entries=ENTRIES, look_below=True),
        Inode(2, Kind.FILE, 0o4755, 1, 2, chunks=[FileChunk(CHUNK, 0, 10), FileChunk(sha256(b"y"), 3, 9, True)]),
        Inode(3, Kind.LNK, target=b"target"),
        Inode(4, Kind.CHR, device=(10, 229), xattrs=[Xattr(b"user.a", b"b"), Xattr(b"user.empty", b"")]),
        Inode(5, Kind.DIR, entries=[DirEntry(2, b"again"), DirEntry(10, b"below")]),
        Inode(6, Kind.BLK, device=(8, 1)),
        Inode(7, Kind.WHT),
        Inode(8, Kind.FILE, xattrs=[Xattr(b"security.capability", bytes(20))]),
        Inode(9, Kind.SOCK),
        Inode(10, Kind.FIFO),
    ]],
    [ChunkVerity(CHUNK, bytes(32)), ChunkVerity(sha256(b"y"), bytes(range(32)))],
)  # fmt: skip
DELTA = RootfsContent(
    [
        [
            Inode(1, Kind.DIR, entries=[DirEntry(2, b"gone"), DirEntry(4, b"new")], look_below=True),
            Inode(2, Kind.WHT),
            Inode(4, Kind.FIFO),
        ],
        [Inode(1, Kind.DIR, entries=[DirEntry(2, b"gone"), DirEntry(3, b"kept")]), Inode(2, Kind.FIFO), Inode(3, Kind.FIFO)],
    ]
)
MESSAGE = encode(TREE)


def tars() -> dict[str, bytes]:
    layer = Layer()
    layer.directory(b"./")
    layer.file(b"a/file", b"data" * 200, xattrs={"user.x": b"\0\xff"})
    layer.hardlink(b"link", b"a/file")
    layer.symlink(b"way", b"../out")
    layer.character_device(b"null", (1, 3))
    layer.whiteout(b"a/gone")
    layer.opaque(b"b")
    layer.file(b"n" * 200, b"")
    made = {"pax": layer.tar()}
    for name, style in (("gnu", tarfile.GNU_FORMAT), ("ustar", tarfile.USTAR_FORMAT)):
        raw = io.BytesIO()
        with tarfile.TarFile(fileobj=raw, mode="w", format=style) as tar:
            info = tarfile.TarInfo("d/" + ("long" * 40 if name == "gnu" else "short"))
            info.size = 700
            tar.addfile(info, io.BytesIO(bytes(700)))
        made[name] = raw.getvalue()[:4096]
    block = bytearray(made["gnu"][:512])
    block[156:157] = b"S"  # an old GNU sparse file: its map stands in the header
    block[386:410] = b"00000001000\0" + b"00000000100\0"
    block[483:495] = b"00000010000\0"
    made["sparse"] = bytes(block) + bytes(1024)
    return made


def seeds() -> dict[str, dict[str, bytes]]:
    """Contents by target and name."""
    chunks = some_chunks(6, size=300)
    place, blob, _ = make_pack(chunks)
    offset, length = parse_footer(blob[-FOOTER_SIZE:], len(blob))
    index = blob[offset : offset + length]
    layer = MetadataLayer(
        sha256(b"stored"), sha256(MESSAGE), bytes(32), (place, PackPlace(sha256(b"other"), 10, 5)), "host:5000/app:1"
    )
    described = [
        Descriptor(MEDIA_TYPE_METADATA, layer.metadata, 100, layer.annotations()),
        Descriptor(MEDIA_TYPE_PACK, place.pack, len(blob), PackLayer(place.pack).annotations()),
    ]
    config = Descriptor("application/vnd.oci.image.config.v1+json", sha256(b"{}"), 2)
    text = layer.annotations()
    raw = b"some text, again and again, " * 300
    made = tars()
    return {
        "metadata": {"tree": MESSAGE, "delta": encode(DELTA), "no-times": encode(TREE, times=False)},
        "tar": made,
        "stream": {"gzip": gzip.compress(made["pax"], mtime=0), "zstd": compress(made["pax"]), "plain": made["ustar"]},
        "zstd": {"chunk": compress(raw[:4096]), "seekable": encode_seekable(raw) or b"", "one": compress(b"x")},
        "manifest": {
            "manifest": new_manifest(config, described, {"a": "b"}),
            "index": new_index([Descriptor("application/vnd.oci.image.manifest.v1+json", sha256(b"m"), 7)], {}),
            "config": json.dumps({"rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64] * 3}}).encode(),
        },
        "labels": {
            "metadata": "\n".join(value for key, value in text.items() if "puzzlefs." in key).encode(),
            "pack": "\n".join(PackLayer(place.pack).annotations().values()).encode(),
            "reference": b"registry.example:5000/library/app:1@sha256:" + b"0" * 64,
        },
        "pack": {"index": index, "footer": blob[-FOOTER_SIZE:]},
        "program": {
            "library": programs.program([b"liba.so.1", b"libb.so"], b"/lib64/ld.so", code=100)[: 8 << 10],
            "source": modules.SOURCE.encode(),
            **{f"compiled-{release}": data for release, data in modules.releases().items() if release != "this"},
        },
        "peer": {
            "requests": peerprotocol.request(CHUNK) + peerprotocol.request(sha256(b"y")),
            "answers": peerprotocol.answer(404, 0)
            + peerprotocol.answer(200, 3)
            + b"abc"
            + peerprotocol.answer(400, 0, last=True),
        },
    }


if __name__ == "__main__":
    for target, inputs in seeds().items():
        (CORPUS / target).mkdir(parents=True, exist_ok=True)
        for name, data in inputs.items():
            (CORPUS / target / name).write_bytes(data)
            print(f"{target}/{name}: {len(data)} bytes, {hashlib.sha256(data).hexdigest()[:12]}")
