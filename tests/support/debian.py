"""The image that is measured: Debian 12 with Python and NumPy, made by mmdebstrap and put into OCI form by umoci.

Kept under ``.tools/images``, so that it is built once. ``python3 -m tests.support.debian`` builds it, with nothing but the
standard library.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.support import tools
from tests.support.images import Image
from tests.support.processes import run

SUITE = "bookworm"
PACKAGES = "python3,python3-numpy"
TAG = "debian-numpy"

IMAGES = tools.STATE / "images"


class NoMirrorError(Exception):
    """apt's configuration names no Debian mirror."""


def image() -> Image:
    """The image, built if it is not there yet.

    Raises:
        NoMirrorError: no mirror is configured.
        CommandError: a tool failed.
        MissingToolError: a tool is missing.
    """
    layout = IMAGES / TAG
    IMAGES.mkdir(parents=True, exist_ok=True)
    with (IMAGES / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not layout.is_dir():
            work = Path(tempfile.mkdtemp(prefix="puzzlefs-image-"))
            try:
                _build(work)
                shutil.move(work / TAG, IMAGES / f".{TAG}")
                (IMAGES / f".{TAG}").rename(layout)
            finally:
                shutil.rmtree(work)
    return Image(layout, TAG, tuple(_config(layout)["rootfs"]["diff_ids"]))


def compressed_size(layout: Path) -> int:
    """Bytes of the image's compressed layers."""
    return sum(int(layer["size"]) for layer in _manifest(layout)["layers"])


def layers(layout: Path) -> list[Path]:
    """The files of the image's layers, gzip-compressed archives, the lowest first."""
    return [_blob(layout, str(layer["digest"])) for layer in _manifest(layout)["layers"]]


def _build(work: Path) -> None:
    archive = work / "root.tar"
    sources = [f"deb {uri} {suite} main" for uri, suite in apt_mirrors()]
    options = [f"--aptopt={line}" for line in apt_proxies()]
    print(f"building {TAG}: {SUITE} with {PACKAGES} from {sources[0].split()[1]}", flush=True)
    run(
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        f"--include={PACKAGES}",
        *options,
        SUITE,
        archive,
        *sources,
        timeout=900,
    )
    reference = f"{work / TAG}:{TAG}"
    run("umoci", "init", "--layout", work / TAG)
    run("umoci", "new", "--image", reference)
    run("umoci", "raw", "add-layer", "--image", reference, archive, timeout=300)
    run("umoci", "config", "--image", reference, "--config.cmd", "python3")
    run("umoci", "gc", "--layout", work / TAG)


def mirrors(lines: Iterable[str]) -> list[tuple[str, str]]:
    """(URI, suite) of the Debian archive that the lines of apt's sources name and, if they do, of its security archive.

    Raises:
        NoMirrorError: they name none.
    """
    uris = [uri.rstrip("/") for line in lines if re.match(r"\s*(URIs:|deb )", line) for uri in re.findall(r"\S+://\S+", line)]
    main = [uri for uri in uris if uri.endswith("/debian")]
    security = [uri for uri in uris if uri.endswith("/debian-security")]
    if not main:
        raise NoMirrorError("no Debian mirror (a URI that ends in /debian) in /etc/apt/sources.list or sources.list.d")
    return [(main[0], SUITE), *((uri, f"{SUITE}-security") for uri in security[:1])]


def apt_mirrors() -> list[tuple[str, str]]:
    """What `mirrors` finds in this machine's configuration of apt."""
    return mirrors(_apt_sources(Path("/etc/apt")))


def _apt_sources(etc: Path) -> list[str]:
    parts = etc / "sources.list.d"
    files = [etc / "sources.list", *sorted(parts.glob("*.list")), *sorted(parts.glob("*.sources"))]
    return [line for file in files if file.is_file() for line in file.read_text().splitlines()]


def apt_proxies() -> list[str]:
    """The proxies that apt is set up with, as lines of its configuration.

    The apt of mmdebstrap and that of a new tree do not read the machine's.
    """
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    return [line for line in dump.splitlines() if re.match(r'Acquire::https?::Proxy "', line)]


def _manifest(layout: Path) -> dict[str, list[dict[str, Any]]]:
    described = json.loads((layout / "index.json").read_text())["manifests"][0]
    return json.loads(_blob(layout, described["digest"]).read_text())  # type: ignore[no-any-return]


def _config(layout: Path) -> dict[str, dict[str, list[str]]]:
    manifest = json.loads(json.dumps(_manifest(layout)))
    return json.loads(_blob(layout, manifest["config"]["digest"]).read_text())  # type: ignore[no-any-return]


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


if __name__ == "__main__":
    try:
        image()
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
