"""Small OCI images from described trees: tar layers with everything that a layer may hold, and the layout around them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"

SECOND = 1_000_000_000


class Layer:
    """A layer under construction. Names are bytes, relative to the root; times are nanoseconds since the epoch.

    Entries are written as PAX headers (times, xattrs, names of any length), in the order of the calls.
    """

    def __init__(self) -> None:
        self._raw = io.BytesIO()
        # closed by `tar`
        self._tar = tarfile.TarFile(
            fileobj=self._raw, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
        )

    def add(
        self,
        name: bytes,
        kind: bytes,
        mode: int,
        *,
        data: bytes = b"",
        link: bytes = b"",
        owner: tuple[int, int] = (0, 0),
        mtime: int = 1_700_000_000 * SECOND,
        xattrs: Mapping[str, bytes] | None = None,
        device: tuple[int, int] = (0, 0),
    ) -> None:
        """Add one entry; `kind` is a ``tarfile`` type, `mode` the permission bits."""
        info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
        info.type, info.mode, info.linkname = kind, mode, link.decode("utf-8", "surrogateescape")
        info.uid, info.gid = owner
        info.size = len(data)
        info.devmajor, info.devminor = device
        info.pax_headers = {"mtime": f"{'-' if mtime < 0 else ''}{abs(mtime) // SECOND}.{abs(mtime) % SECOND:09d}"}
        for key, value in (xattrs or {}).items():
            info.pax_headers[f"SCHILY.xattr.{key}"] = value.decode("utf-8", "surrogateescape")
        self._tar.addfile(info, io.BytesIO(data))

    def directory(self, name: bytes, mode: int = 0o755, **more: object) -> None:
        self.add(name, tarfile.DIRTYPE, mode, **more)  # type: ignore[arg-type]

    def file(self, name: bytes, data: bytes, mode: int = 0o644, **more: object) -> None:
        self.add(name, tarfile.REGTYPE, mode, data=data, **more)  # type: ignore[arg-type]

    def symlink(self, name: bytes, target: bytes, **more: object) -> None:
        self.add(name, tarfile.SYMTYPE, 0o777, link=target, **more)  # type: ignore[arg-type]

    def hardlink(self, name: bytes, target: bytes, **more: object) -> None:
        self.add(name, tarfile.LNKTYPE, 0o644, link=target, **more)  # type: ignore[arg-type]

    def fifo(self, name: bytes, mode: int = 0o644, **more: object) -> None:
        self.add(name, tarfile.FIFOTYPE, mode, **more)  # type: ignore[arg-type]

    def character_device(self, name: bytes, device: tuple[int, int], mode: int = 0o600, **more: object) -> None:
        self.add(name, tarfile.CHRTYPE, mode, device=device, **more)  # type: ignore[arg-type]

    def block_device(self, name: bytes, device: tuple[int, int], mode: int = 0o600, **more: object) -> None:
        self.add(name, tarfile.BLKTYPE, mode, device=device, **more)  # type: ignore[arg-type]

    def whiteout(self, name: bytes) -> None:
        """Hide `name` of the layers below (``.wh.NAME``)."""
        directory, slash, last = name.rpartition(b"/")
        self.add(directory + slash + b".wh." + last, tarfile.REGTYPE, 0)

    def opaque(self, directory: bytes) -> None:
        """Hide everything that the layers below have in `directory` (``.wh..wh..opq``)."""
        self.add(directory + b"/.wh..wh..opq", tarfile.REGTYPE, 0)

    def tar(self) -> bytes:
        """The finished layer, uncompressed."""
        self._tar.close()
        return self._raw.getvalue()


@dataclass(frozen=True, slots=True)
class Image:
    """An image in an OCI layout directory, as `reference` for skopeo; the diff IDs are of the layers from the lowest up."""

    layout: Path
    tag: str
    diff_ids: tuple[str, ...]

    @property
    def reference(self) -> str:
        return f"oci:{self.layout}:{self.tag}"

    @property
    def chain_id(self) -> str:
        return chain_id(self.diff_ids)


def write_image(layout: Path, tag: str, layers: Sequence[bytes], command: Sequence[str] = ("/bin/busybox", "sh")) -> Image:
    """Write tar layers (the lowest first) as an image into an OCI layout directory of its own."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, media_type: str) -> dict[str, object]:
        encoded = hashlib.sha256(data).hexdigest()
        (blobs / encoded).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{encoded}", "size": len(data)}

    diff_ids = tuple(f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers)
    config = {
        "created": "2024-01-02T03:04:05Z",
        "architecture": _architecture(),
        "os": "linux",
        "config": {"Cmd": list(command), "Env": ["PATH=/usr/bin:/bin:/usr/sbin:/sbin"]},
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        "history": [{"created_by": f"layer {number}"} for number in range(len(layers))],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": [put(gzip.compress(layer, 6, mtime=0), LAYER_GZIP) for layer in layers],
    }
    described = put(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    described["annotations"] = {"org.opencontainers.image.ref.name": tag}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return Image(layout, tag, diff_ids)


def chain_id(diff_ids: Sequence[str]) -> str:
    """The chain ID of a stack of layers (OCI image specification, "Layer ChainID")."""
    chain = diff_ids[0]
    for diff_id in diff_ids[1:]:
        chain = f"sha256:{hashlib.sha256(f'{chain} {diff_id}'.encode()).hexdigest()}"
    return chain


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
