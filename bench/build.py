"""How fast images are made, in how much memory, and how long a layer of 100,000 inodes takes to open."""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench.corpus import small, wheels
from bench.corpus.debian import CORPUS
from bench.observation import Observed, observed
from bench.report import Section, Table, publish
from snapshotter.build.publish import SealedMessage, seal
from snapshotter.daemon.metadata import fetch
from snapshotter.errors import NotFoundError
from snapshotter.format.annotations import MetadataLayer
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.message import Whole
from snapshotter.format.model import ChunkVerity, DirEntry, Inode, Kind, RootfsContent
from snapshotter.format.rootfs import Rootfs
from snapshotter.format.writer import encode
from tests.support.processes import run

MB = 1_000_000
INODES = 100_000
OPENED = 9
MEMORY = Path("/dev/shm")  # noqa: S108  a file system in memory, for what shall not wait for a disk
PUZZLEFS = Path(sys.executable).with_name("puzzlefs")

METHOD = """
`science` is the image of `make demo` with tensorflow-cpu, SciPy, pyarrow and OpenCV installed by pip, `learning` has
PyTorch, Triton, cuBLAS and cuDNN besides (versions: `bench/corpus/wheels.py`). `convert --level 3` reads the tree as
one uncompressed tar layer of an OCI layout; `build` reads the tree itself, whose chunks it stores as they are. The
input is in the page cache. *Disk*: the result goes to the disk that the input is on, written through (fsync) before the
command ends; *memory*: to a tmpfs, which takes it as fast as it comes. The small files have 50 to 270 bytes, a hundred
are in a directory. Nothing of the image was known before. Rates are bytes of the tar, or of the tree's files, by the
clock. Memory is looked at every 0.1 s: the largest resident set of a process (VmHWM), and all processes of the command
together (PSS: what they share counts once). Turns: {turns}, with the small files one; the median, and in brackets the
slowest and the fastest.

A layer is opened as the daemon opens one that was fetched: decompressed, checked by sha256 and fs-verity digest, and its root
found; {opened} turns. It has the inodes of `science` several times over, each time with other chunks.
"""


def image_of(tree: Path, layout: Path) -> int:
    """An image with `tree` as its one layer, not compressed; the layer's bytes."""

    def write(tar: Path) -> None:
        run("tar", "-C", tree, "--sort=name", "--numeric-owner", "--xattrs", "-cf", tar, ".", timeout=600)

    return image_with(write, layout)


def image_with(write: Callable[[Path], None], layout: Path) -> int:
    """An image with the tar that `write` writes as its one layer; the layer's bytes."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    tar = blobs / "layer"
    write(tar)
    with tar.open("rb") as file:
        name = hashlib.file_digest(file, "sha256").hexdigest()
    size = tar.stat().st_size
    tar.rename(blobs / name)

    def put(content: object) -> dict[str, object]:
        data = json.dumps(content).encode()
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [f"sha256:{name}"]}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **put(config)},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": f"sha256:{name}", "size": size}],
    }
    entry = {"mediaType": manifest["mediaType"], **put(manifest)}
    entry["annotations"] = {"org.opencontainers.image.ref.name": "x"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return size


@contextmanager
def _place(beside: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bench-build-", dir=beside) as directory:
        yield Path(directory)


def measure(words: Sequence[str | Path], destination: str, beside: Path, turns: int) -> list[Observed]:
    """Run a command so many times, each time into a new layout beside which nothing is written."""
    found = []
    for _ in range(turns):
        with _place(beside) as place:
            found.append(observed(PUZZLEFS, *words, destination.format(place / "layout")))
    return found


def row(what: str, size: int, found: Sequence[Observed]) -> list[str]:
    """One line of the table."""
    walls = [each.wall for each in found]
    middle, slowest, fastest = (size / wall / MB for wall in (statistics.median(walls), max(walls), min(walls)))
    return [
        what,
        f"{size / MB:.0f} MB",
        f"{statistics.median(walls):.1f} s",
        f"{middle:.0f} MB/s" + (f" ({slowest:.0f}-{fastest:.0f})" if len(found) > 1 else ""),
        f"{statistics.median(each.processor for each in found):.1f} s",
        f"{max(each.largest for each in found) / MB:.0f} MB",
        f"{max(each.together for each in found) / MB:.0f} MB",
    ]


def rates(names: Sequence[str], turns: int) -> Table:
    """Every way to make an image of every tree."""
    rows = []
    for name in names:
        tree = wheels.tree(name)
        files = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
        with _place(CORPUS) as work:
            tar = image_of(tree, work / "source")
            convert = ("convert", "--level", "3", f"oci:{work / 'source'}:x")
            # The disk's own rate is seen with the smaller tree as well as with the larger one.
            places = (("disk", CORPUS), ("memory", MEMORY)) if name == names[0] else (("memory", MEMORY),)
            for where, beside in places:
                rows.append(row(f"convert, {name}, {where}", tar, measure(convert, "oci:{}:x", beside, turns)))
                print(*rows[-1], flush=True)
        # A file for each chunk, which the disk would take longer to write than anything here.
        rows.append(row(f"build, {name}, memory", files, measure(("build", tree), "{}:x", MEMORY, turns)))
        print(*rows[-1], flush=True)
    rows += small_files()
    headings = ["", "input", "time", "rate", "processor", "largest process", "all together"]
    return Table("Build rate and memory", headings, rows)


def small_files() -> list[list[str]]:
    """The same of very many small files, all in memory."""
    name = f"{small.FILES:,} small files, memory"
    rows = []
    with _place(MEMORY) as work:
        tar = image_with(small.write, work / "source")
        convert = ("convert", "--level", "3", f"oci:{work / 'source'}:x")
        rows.append(row(f"convert, {name}", tar, measure(convert, "oci:{}:x", MEMORY, 1)))
        print(*rows[-1], flush=True)
        tree = work / "tree"
        tree.mkdir()
        layer = max((work / "source" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
        run("tar", "-C", tree, "-xf", layer, timeout=600)
        files = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
        for what, options in (("build", ()), ("build --upstream", ("--upstream",))):
            rows.append(row(f"{what}, {name}", files, measure(("build", *options, tree), "{}:x", MEMORY, 1)))
            print(*rows[-1], flush=True)
        built, pushed = f"{work / 'built'}:x", f"oci:{work / 'pushed'}:x"
        run(PUZZLEFS, "build", tree, built, timeout=600)
        commands: dict[str, tuple[str | Path, ...]] = {
            "build --base-layer": ("build", "--base-layer", "x", tree, f"{work / 'built'}:y"),
            "push": ("push", f"oci:{built}", pushed),
            "verify": ("verify", pushed),
            "inspect": ("inspect", pushed),
            "diff": ("diff", f"oci:{built}", pushed),
            "extract": ("extract", built, work / "extracted"),
        }
        for what, words in commands.items():
            rows.append(row(f"{what}, {name}", files, [observed(PUZZLEFS, *words)]))
            print(*rows[-1], flush=True)
    return rows


def many_inodes(message: bytes) -> bytes:
    """A layer with the inodes of the layer `message` again and again, in a directory for each time, each time other chunks."""
    rootfs = Rootfs.open(message)
    layer = list(rootfs.stored()[0])
    pairs = list(rootfs.verities())
    times = -(-INODES // len(layer))
    step = max(inode.ino for inode in layer)
    inodes = [Inode(1, Kind.DIR, entries=[DirEntry(2 + time * step, b"%d" % time) for time in range(times)], look_below=True)]
    verity = []
    for again in range(times):
        names = {pair.digest: sha256(b"%d" % again + pair.digest) for pair in pairs}
        verity += [ChunkVerity(names[pair.digest], sha256(b"%d" % again + pair.verity)) for pair in pairs]
        inodes += [
            replace(
                inode,
                ino=inode.ino + again * step + 1,
                entries=[DirEntry(entry.ino + again * step + 1, entry.name) for entry in inode.entries],
                chunks=[replace(chunk, digest=names[chunk.digest]) for chunk in inode.chunks],
            )
            for inode in layer
        ]
    rootfs.close()
    return encode(RootfsContent([inodes], sorted(verity, key=lambda pair: pair.digest)))


class _One:
    """A source that has one blob."""

    name = "memory"

    def __init__(self, blob: bytes) -> None:
        self._blob = blob

    def read_blob(self, digest: Digest, limit: int) -> bytes:
        return self._blob

    def read_range(self, digest: Digest, offset: int, length: int) -> bytes:
        raise NotFoundError("nothing is read by ranges here")


def opening(message: bytes) -> Table:
    """What it takes to open a layer, as a whole."""
    sealed: SealedMessage = seal(Whole(message))
    layer = MetadataLayer(sha256(sealed.stored), sealed.diff_id, sealed.verity, ())
    rootfs = Rootfs.open(message)
    inodes = rootfs.inode_count
    rootfs.close()
    seconds = []
    for _ in range(OPENED):
        start = time.monotonic()
        opened = Rootfs.open(fetch(layer, [_One(sealed.stored)]).data)
        opened.lookup(1, b"0")
        seconds.append(time.monotonic() - start)
        opened.close()
    sizes = f"{len(message) / MB:.1f} MB, {len(sealed.stored) / MB:.1f} MB stored"
    return Table(
        "A layer with many inodes opened",
        ["", "message", "time", "fastest"],
        [[f"{inodes:,} inodes", sizes, f"{1000 * statistics.median(seconds):.0f} ms", f"{1000 * min(seconds):.0f} ms"]],
    )


def message_of(tree: Path) -> bytes:
    """The metadata message of `tree` as `puzzlefs build` makes it."""
    with _place(MEMORY) as place:
        observed(PUZZLEFS, "build", tree, f"{place / 'layout'}:x")
        index = json.loads((place / "layout" / "index.json").read_text())
        blobs = place / "layout" / "blobs" / "sha256"
        manifest = json.loads((blobs / index["manifests"][0]["digest"].removeprefix("sha256:")).read_bytes())
        name: str = manifest["layers"][0]["digest"]
        return (blobs / name.removeprefix("sha256:")).read_bytes()


def main() -> None:
    """Measure, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trees", nargs="+", choices=wheels.TREES, default=list(wheels.TREES))
    parser.add_argument("--turns", type=int, default=3)
    told = parser.parse_args()
    tables = [rates(told.trees, told.turns), opening(many_inodes(message_of(wheels.tree("science"))))]
    publish(Section("build", "Making images", METHOD.format(turns=told.turns, opened=OPENED), tables))


if __name__ == "__main__":
    main()
