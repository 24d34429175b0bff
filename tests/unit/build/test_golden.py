"""Digests of one small image, pinned: a change here makes every stored image new data (tests/golden/ours/README.md)."""

from __future__ import annotations

import io
import json
from pathlib import Path

from snapshotter.build.image import Options, convert
from snapshotter.format.digest import sha256, to_text
from snapshotter.registry.base import Descriptor
from snapshotter.registry.documents import descriptor_from_json
from snapshotter.registry.layout import LayoutStore
from tests.support.golden_data import noise, text
from tests.support.images import SECOND, Layer

GOLDEN = Path(__file__).parents[2] / "golden" / "ours"
T = 1_700_000_000 * SECOND


def first() -> bytes:
    layer = Layer()
    layer.directory(b"./", mtime=T)
    layer.directory(b"etc", 0o755, mtime=T + 1)
    for number in range(60):
        layer.file(b"etc/%02d" % number, text(f"etc {number}", 300 * number), 0o644, mtime=T + number * SECOND)
    layer.directory(b"usr/lib", 0o2755, owner=(0, 50), mtime=T + 999_999_999)
    layer.file(b"usr/lib/large", noise("large", 700_000), 0o755, mtime=T, xattrs={"user.b": b"2", "user.a": b"\x00\xff"})
    layer.hardlink(b"usr/lib/twin", b"usr/lib/large", mtime=T, xattrs={"user.b": b"2", "user.a": b"\x00\xff"})
    layer.file(b"usr/lib/text", text("text", 500_000), 0o4711, owner=(1000, 4_000_000_000), mtime=T)
    layer.file(b"usr/lib/empty", b"", mtime=T)
    layer.symlink(b"lib", b"usr/lib", mtime=T)
    layer.symlink(b"raw\xff", b"target\xfe", mtime=T)
    layer.character_device(b"dev/null", (1, 3), 0o666, mtime=T)
    layer.block_device(b"dev/loop0", (7, 0), 0o660, owner=(0, 6), mtime=T)
    layer.fifo(b"dev/initctl", 0o600, mtime=T)
    return layer.tar()


def second() -> bytes:
    layer = Layer()
    layer.whiteout(b"etc/07")
    layer.opaque(b"usr/lib")
    layer.file(b"usr/lib/large", noise("large", 350_000) + noise("changed", 350_000), mtime=T)
    layer.hardlink(b"also", b"etc/08", mtime=T)
    return layer.tar()


def build(store: LayoutStore) -> dict[str, object]:
    """Convert the image with default options; everything that has a digest."""

    def put(data: bytes, media_type: str) -> dict[str, object]:
        store.put_blob(Descriptor(media_type, sha256(data), len(data)), io.BytesIO(data))
        return {"mediaType": media_type, "digest": to_text(sha256(data)), "size": len(data)}

    layers = [first(), second()]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [to_text(sha256(layer)) for layer in layers]},
    }
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": [put(layer, "application/vnd.oci.image.layer.v1.tar") for layer in layers],
    }
    data = json.dumps(document).encode()
    store.put_manifest(Descriptor(str(document["mediaType"]), sha256(data), len(data)), data, "in")
    done = convert(store, "in", store, "out", options=Options(workers=2))
    manifest = json.loads(store.manifest("out")[1])
    return {
        "manifest": to_text(done.manifest.digest),
        "config": manifest["config"]["digest"],
        "layers": [layer["digest"] for layer in manifest["layers"]],
        "diff_ids": json.loads(store.open_blob(descriptor_from_json(manifest["config"], "out")).read())["rootfs"]["diff_ids"],
    }


def test_the_digests_are_what_they_were(tmp_path: Path) -> None:
    assert build(LayoutStore(tmp_path, durable=False)) == json.loads((GOLDEN / "image.json").read_text())
