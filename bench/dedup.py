"""How much ten versions of an image take together, and what each update costs: ours beside what else there is.

Everything counts that a registry would hold or a node would move: manifests, configurations, metadata and indexes included.
Two series of images: a Debian root file system under its distribution's updates, a Python application at ten releases of
its largest package. Each way stores the ten versions one after another, into one place; what that place grows by is what an
update costs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import zstandard

from bench.corpus import application, debian
from bench.report import Bars, Section, Table, publish
from tests.support import tools, upstream
from tests.support.images import write_image

MB = 1_000_000

UPSTREAM, UPSTREAM_C = "upstream", "upstream -c"
OURS_RAW, OURS_3, OURS = "puzzlefs build", "puzzlefs convert --level 3", "puzzlefs convert"

METHOD = """
Every way stores the ten versions one after another into one place; what the place grows by is the update: chunks, packs,
indexes, metadata, manifests and configurations. `upstream` is its own program (crates.io, 0.2.0) with and without `-c`,
`casync` Debian's, with its defaults; whole files are counted with a list of their names and attributes. `puzzlefs build` stores
chunks uncompressed in upstream's layout, `puzzlefs convert` packs, from images of one tar+gzip layer. Speed is of the tarballs'
bytes: by the clock, on a machine that may have had other work, and by processor time, of all cores; the programs
`tar` and `gzip` were not timed. Memory is the largest resident set of a process. Ratios are to `upstream -c` in the same run.

Debian 12 as mmdebstrap makes it, with its security updates one after another: {steps}. The application is pandas with its
dependencies, installed by pip: {releases}.
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """A command's seconds, processor seconds and largest resident memory in bytes."""

    wall: float
    processor: float
    memory: int


@dataclass
class Stored:
    """One way of storing a series: bytes after each version, and what storing each took (None where nothing was run)."""

    name: str
    after: list[int] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)

    @property
    def unified(self) -> int:
        """All ten versions together."""
        return self.after[-1]

    @property
    def updates(self) -> int:
        """The nine updates together."""
        return self.after[-1] - self.after[0]


_MEASURE = """
import json, os, sys, time
start = time.monotonic()
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
_, status, usage = os.wait4(child, 0)
wall, processor = time.monotonic() - start, usage.ru_utime + usage.ru_stime
print(json.dumps([os.waitstatus_to_exitcode(status), wall, processor, usage.ru_maxrss]))
"""
"""Runs a command from a small process: what a large one starts is charged with the memory of its parent (getrusage(2))."""


def measured(*command: str | Path) -> Cost:
    """Run a command to its end, and what it cost."""
    words = [tools.find(str(command[0])) if "/" not in str(command[0]) else str(command[0]), *map(str, command[1:])]
    done = subprocess.run([sys.executable, "-S", "-c", _MEASURE, *words], check=True, capture_output=True, text=True)
    status, wall, processor, memory = json.loads(done.stdout.splitlines()[-1])
    if status != 0:
        raise SystemExit(f"{' '.join(words)}: exit status {status}: {done.stderr[-1000:]}")
    return Cost(wall, processor, memory * 1024)


def size_of(directory: Path) -> int:
    """Bytes of all files below it."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def one_after_another(name: str, trees: Sequence[Path], place: Path, store: Callable[[Path, Path], Cost]) -> Stored:
    """Store every version with `store(tree, place)`."""
    stored = Stored(name)
    place.mkdir(parents=True)
    for tree in trees:
        stored.costs.append(store(tree, place))
        stored.after.append(size_of(place))
    shutil.rmtree(place)
    _say(stored)
    return stored


def tarballs(trees: Sequence[Path], sources: Path) -> tuple[Stored, Stored]:
    """The ordinary images: a tar layer each, compressed with gzip; kept below `sources`, for `puzzlefs convert` to read."""
    plain, compressed = Stored("tar"), Stored("tar.gz")
    for tree in trees:
        command = [tools.find("tar"), "-C", str(tree), "--sort=name", "--numeric-owner", "--xattrs", "-cf", "-", "."]
        tar = subprocess.run(command, check=True, capture_output=True).stdout
        plain.after.append(len(tar) + (plain.after[-1] if plain.after else 0))
        write_image(sources / tree.name, tree.name, [tar])
        compressed.after.append(sum(size_of(place) for place in sources.iterdir()))
    _say(plain)
    _say(compressed)
    return plain, compressed


def whole_files(trees: Sequence[Path]) -> tuple[Stored, Stored]:
    """Every different file once, raw and with zstd-3, and for each version the list of its names, compressed."""
    raw, compressed = Stored("whole files"), Stored("whole files, zstd-3")
    seen: set[bytes] = set()
    raw_bytes = compressed_bytes = 0
    compressor = zstandard.ZstdCompressor(level=3)
    for tree in trees:
        lines = []
        for path in sorted(tree.rglob("*")):
            status = path.lstat()
            line = f"{path.relative_to(tree)} {status.st_mode:o} {status.st_uid} {status.st_gid} {status.st_mtime_ns}"
            if stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
                digest = hashlib.sha256(content).digest()
                line += f" {digest.hex()}"
                if digest not in seen:
                    seen.add(digest)
                    raw_bytes += len(content)
                    compressed_bytes += min(len(content), len(compressor.compress(content)))
            elif stat.S_ISLNK(status.st_mode):
                line += f" {path.readlink()}"
            lines.append(line)
        listing = len(zstandard.compress("\n".join(lines).encode("utf-8", "surrogateescape"), 3))
        raw_bytes += listing
        compressed_bytes += listing
        raw.after.append(raw_bytes)
        compressed.after.append(compressed_bytes)
    _say(raw)
    _say(compressed)
    return raw, compressed


def series(title: str, trees: Sequence[Path], work: Path) -> list[Stored]:
    """Store the ten versions in every way."""
    print(title, flush=True)
    program = upstream.program()
    ours = [Path(sys.executable).with_name("puzzlefs")]
    sources = work / "sources"

    def build(*command: str | Path) -> Callable[[Path, Path], Cost]:
        return lambda tree, place: measured(*command, tree, f"{place}:{tree.name}")

    def casync(tree: Path, place: Path) -> Cost:
        index = place / f"{tree.name}.caidx"
        return measured("casync", "make", f"--store={place / 'default.castr'}", index, tree)

    def convert(*options: str) -> Callable[[Path, Path], Cost]:
        return lambda tree, place: measured(
            *ours, "convert", *options, f"oci:{sources / tree.name}:{tree.name}", f"oci:{place}:{tree.name}"
        )

    return [
        *tarballs(trees, sources),
        *whole_files(trees),
        one_after_another(UPSTREAM, trees, work / "upstream", build(program, "build")),
        one_after_another(UPSTREAM_C, trees, work / "upstream-c", build(program, "build", "-c")),
        one_after_another("casync", trees, work / "casync", casync),
        one_after_another(OURS_RAW, trees, work / "build", build(*ours, "build")),
        one_after_another(OURS_3, trees, work / "convert-3", convert("--level", "3")),
        one_after_another(OURS, trees, work / "convert", convert()),
    ]


def _say(stored: Stored) -> None:
    seconds = sum(cost.wall for cost in stored.costs)
    print(f"  {stored.name}: {stored.unified / MB:.1f} MB, updates {stored.updates / MB:.1f} MB, {seconds:.1f} s", flush=True)


def talk(all_ways: Sequence[Stored]) -> Table:
    """The table of the talk that PuzzleFS was presented in, with its figures for Ubuntu 22.04 beside ours."""
    ways = {way.name: way for way in all_ways}
    total = ways["tar"].unified
    named = [("no deduplication", "tar", "–"), ("uncompressed", UPSTREAM, "83 %"), ("compressed", UPSTREAM_C, "93 %")]
    named += [("uncompressed, this project", OURS_RAW, ""), ("compressed, this project", OURS, "")]
    rows = [
        [
            what,
            f"{ways[name].unified / MB:.1f} MB",
            f"{total / 10 / MB:.1f} MB",
            f"{100 * (1 - ways[name].unified / total):.1f} %",
            said,
        ]
        for what, name, said in named
    ]
    return Table("Ten versions of one base image", ["", "total", "average layer", "saved", "saved in the talk"], rows)


def figures(title: str, ways: Sequence[Stored]) -> Table:
    """Everything about one series."""
    tar = ways[0].unified
    reference = next(way for way in ways if way.name == UPSTREAM_C)
    rows = []
    for way in ways:
        seconds, processor = sum(cost.wall for cost in way.costs), sum(cost.processor for cost in way.costs)
        rows.append(
            [
                way.name,
                f"{way.after[0] / MB:.1f} MB",
                f"{way.updates / MB:.2f} MB",
                f"{way.unified / MB:.1f} MB",
                f"{100 * (1 - way.unified / tar):.1f} %",
                f"{way.unified / reference.unified:.3f}",
                f"{way.updates / reference.updates:.3f}",
                f"{tar / seconds / MB:.0f} MB/s" if way.costs else "",
                f"{tar / processor / MB:.0f} MB/s" if way.costs else "",
                f"{max(cost.memory for cost in way.costs) / MB:.0f} MB" if way.costs else "",
            ]
        )
    headings = ["", "first", "nine updates", "unified", "saved", "unified ÷ -c", "updates ÷ -c", "speed", "per core", "memory"]
    return Table(title, headings, rows)


def each_update(title: str, ways: Sequence[Stored]) -> Table:
    """Bytes of every update."""
    rows = [[way.name, *(f"{(new - old) / MB:.2f}" for old, new in pairwise(way.after))] for way in ways]
    return Table(title, ["MB", *(f"v{number:02}" for number in range(2, 11))], rows)


def main() -> None:
    """Measure both series and write the section."""
    with tempfile.TemporaryDirectory(prefix="bench-dedup-", dir=debian.CORPUS) as directory:
        base = series("Debian", debian.versions(), Path(directory) / "debian")
        changes = json.loads((debian.CORPUS / "debian" / "versions.json").read_text())
        app = series("application", application.versions(), Path(directory) / "application")
    shown = [way for way in base if way.name in (UPSTREAM, UPSTREAM_C, "casync", OURS_3, OURS)]
    steps = "; ".join(f"{step['version']} {step['change']}" for step in changes)
    publish(
        Section(
            name="dedup",
            title="Ten versions of an image",
            method=METHOD.format(steps=steps, releases=", ".join(application.RELEASES)),
            tables=[
                talk(base),
                figures("Debian root file system", base),
                each_update("Debian: what each update adds", base),
                figures("Python application", app),
                each_update("Python application: what each update adds", app),
            ],
            plot=Bars(
                "Ten Debian versions: what is stored",
                "MB",
                ["first version", "nine updates"],
                {way.name: [way.after[0] / MB, way.updates / MB] for way in shown},
            ),
        )
    )


if __name__ == "__main__":
    main()
