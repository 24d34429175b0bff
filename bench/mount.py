"""Mounts compared: the directory itself, our two engines, squashfuse and, where it is installed, upstream's program.

Run by ``make bench-mount`` as root. Every figure is taken through overlayfs with a writable directory on top, as a container
sees it. One round mounts every engine anew for each task, with all that it keeps: the server is started, the task is run *cold*
and then again *warm*.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.engines import engines
from bench.engines.engines import Engine
from bench.engines.workload import BIG, BIG_SIZE, Workload, workload
from bench.report import Bars, Section, Table, publish
from bench.timing import Contestant, Timing, side_by_side
from tests.support import mounts, upstream
from tests.support.tools import environment

ROUNDS = 3
TOUCHED = 3 << 30
"""Bytes: the big file once as it is read and once as it is cached, and some."""
NATIVE = "overlayfs"
OURS = "puzzlefs worker"
_UPSTREAM = """, upstream's program the same layout, but not the big file: it goes through a file's whole list of chunks for
every read, and had not read this one in two minutes"""
_RANDOM = """
import os, random, sys
places = random.Random(1)
file = os.open(sys.argv[1], os.O_RDONLY)
pages = os.fstat(file).st_size >> 12
for _ in range(4000):
    os.pread(file, 4096, places.randrange(pages) << 12)
"""
_OPEN = """
import itertools, os, sys
held = [
    os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    for mount in sys.argv[1:]
    for path, _, _ in itertools.islice(os.walk(mount), 1000)
]
print(len(held), flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class Task:
    """Something that is done in the root of the mounted tree. `bytes`: how much it reads, where that is a rate's numerator."""

    name: str
    command: Sequence[str]
    bytes: int | None = None


TASKS = (
    Task("walk", ("sh", "-c", f"find . -path ./{BIG} -prune -o -ls >/dev/null")),
    Task("tar", ("sh", "-c", f"tar -cf - --exclude=./{BIG} . | cat >/dev/null")),
    Task("random reads", (sys.executable, "-S", "-c", _RANDOM, BIG)),
    Task("big file", ("dd", f"if={BIG}", "of=/dev/null", "bs=1M", "status=none"), BIG_SIZE),
    Task("import numpy", ("chroot", ".", "python3", "-c", "import numpy")),
)


@dataclass(frozen=True, slots=True)
class Pair:
    """One task on one engine: first on a new mount, then again."""

    cold: Timing
    warm: Timing


def main() -> int:
    """Run the measurement; the exit status of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="how often every engine does every task (default %(default)s)"
    )
    rounds = parser.parse_args().rounds
    if os.geteuid() != 0:
        print("bench-mount: mounting and forgetting caches need root", file=sys.stderr)
        return 1
    work = workload()
    contestants = [
        Engine(NATIVE, engines.native),
        Engine(OURS, engines.worker),
        Engine("puzzlefs mount (pyfuse3)", engines.pyfuse3),
        Engine("squashfuse", engines.squashfuse),
    ]
    if upstream.PROGRAM.exists():
        contestants.append(Engine("upstream's puzzlefs 0.2.0", engines.upstream, frozenset({"random reads", "big file"})))
    directory = Path(tempfile.mkdtemp(prefix="puzzlefs-bench-"))
    try:
        figures = {task.name: _measure(task, contestants, work, directory, rounds) for task in TASKS}
        memory = {engine.name: _memory(engine, work, directory) for engine in contestants}
        ten = tuple(_many_directories(work, directory / str(alike), alike=alike) for alike in (True, False))
    finally:
        mounts.unmount_all(directory)
        shutil.rmtree(directory, ignore_errors=True)
    publish(_section(figures, memory, ten, rounds, has_upstream=upstream.PROGRAM.exists()))
    return 0


def _measure(task: Task, contestants: Sequence[Engine], work: Workload, directory: Path, rounds: int) -> Mapping[str, Pair]:
    print(f"{task.name}: {rounds} rounds", flush=True)
    warm: dict[str, list[float]] = {engine.name: [] for engine in contestants}

    def turn(engine: Engine) -> Contestant:
        def run() -> float:
            with _stacked(engine, work, directory) as (root, _):
                cold = _seconds(task, root)
                warm[engine.name].append(_seconds(task, root))
                return cold

        def prepare() -> None:
            _read_all(work)
            _touch_memory()

        # Before each turn: a kernel that reclaims what was not used for a while (DAMON) takes pages back within one
        # measurement, and then one contestant of a round pays for the disk, or for pages that the host of a virtual machine
        # has taken back.
        return Contestant(engine.name, run, prepare)

    cold = side_by_side([turn(engine) for engine in contestants if task.name not in engine.skips], rounds)
    return {name: Pair(timing, Timing(warm[name])) for name, timing in cold.items()}


@contextlib.contextmanager
def _stacked(engine: Engine, work: Workload, directory: Path) -> Iterator[tuple[Path, int | None]]:
    point = directory / "lower"
    with engine.mounted(work, point) as mounted, engines.overlay(mounted.path, directory / "overlay") as root:
        yield root, mounted.pid


def _seconds(task: Task, root: Path) -> float:
    contestant = Contestant(task.name, lambda: _run(task.command, root))
    return side_by_side([contestant], 1)[task.name].median


def _run(command: Sequence[str], root: Path) -> None:
    subprocess.run(command, cwd=root, env=environment(), check=True, stdin=subprocess.DEVNULL)


def _touch_memory() -> None:
    """Have the machine's host give it the memory that a turn needs: a page that it takes back is given again when first used,
    which made reading 1 GiB into fresh pages anything between 0.8 and 1.9 s."""
    with mmap.mmap(-1, TOUCHED) as memory:
        for at in range(0, TOUCHED, mmap.PAGESIZE):
            memory[at] = 1


def _read_all(work: Workload) -> None:
    """Have the page cache hold what every engine reads from the disk: it is not the disk that is compared."""
    for path in (work.tree, work.cache_root / "chunks", work.layout / "blobs"):
        subprocess.run(["sh", "-c", f"find {path} -ls >/dev/null; find {path} -type f -exec cat {{}} + >/dev/null"], check=True)
    subprocess.run(["sh", "-c", f"cat {work.squashfs} >/dev/null"], check=True)


def _memory(engine: Engine, work: Workload, directory: Path) -> float | None:
    """MiB that the server has resident after a walk and a tar; None where the kernel alone serves."""
    with _stacked(engine, work, directory) as (root, pid):
        if pid is None:
            return None
        for task in TASKS[:2]:
            _run(task.command, root)
        return _resident(pid)


def _many_directories(work: Workload, directory: Path, *, alike: bool) -> float:
    """MiB resident of a worker that serves ten mounts of the tree, with a thousand directories open in each; one layer that is
    mounted ten times, if they are `alike`, else ten layers."""
    directory.mkdir()
    point = directory / "ten"
    with engines.worker(work, point, mounts=10, alike=alike) as mounted:
        points = [str(point)] + [f"{point}{number}" for number in range(1, 10)]
        command = ["prlimit", "--nofile=20000", sys.executable, "-S", "-c", _OPEN, *points]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None and holder.stdin is not None and mounted.pid is not None  # noqa: S101, PT018
            opened = int(holder.stdout.readline())
            resident = _resident(mounted.pid)
            holder.stdin.close()
        if opened != 10_000:
            raise RuntimeError(f"{opened} directories were open instead of 10,000")
    return resident


def _resident(pid: int) -> float:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(fields["VmRSS"].split()[0]) / 1024


def _section(
    figures: Mapping[str, Mapping[str, Pair]],
    memory: Mapping[str, float | None],
    ten: tuple[float, ...],
    rounds: int,
    *,
    has_upstream: bool,
) -> Section:
    method = f"""
The tree is the image of `make demo` (Debian 12 with Python and NumPy, 12,000 inodes, 279 MB) and one file of
{BIG_SIZE >> 30} GiB that does not compress. Every engine is mounted below overlayfs with a writable directory on top, as in a
container. *Cold*: a new mount by a new server that has everything on this machine (the worker's chunks are files of its
cache, not yet checked since its start, but checked and marked by earlier ones since the machine's, as in a cache that workers
have filled; docs/decisions/reading-local-chunks.md); what is on the disk is in the page cache, for all alike. *Warm*: the same
again on the same mount.
{rounds} rounds, in each of which all engines take turns in changing order; medians, and beside them the median over
the rounds of the ratio to overlayfs on the directory itself. `walk`: `find -ls`; `tar`: GNU tar to a pipe, both without the
big file; `random reads`: 4,000 of 4 KiB in the big file; `big file`: `dd bs=1M`; `import numpy`: in a chroot.
The worker is `puzzlefs-snapshotter`'s own, with its whole chain of chunk stores; `puzzlefs mount` serves the same image as an
OCI layout{_UPSTREAM if has_upstream else ""}, squashfuse the tree compressed with zstd.

A worker that serves ten mounts of the tree's layer, with 1,000 directories open in each, has {ten[0]:.0f} MiB resident;
with ten layers of that size, 120,000 inodes in all, {ten[1]:.0f} MiB.
"""
    tables = [_table("cold", _cold, figures), _table("warm", _warm, figures)]
    rows = [(name, "-" if mib is None else f"{mib:.0f} MiB") for name, mib in memory.items()]
    tables.append(Table("Memory of the server, resident after a walk and a tar", ("", "resident"), rows))
    groups = [f"{task}\n{state}" for task in figures for state in ("cold", "warm")]
    ratios = {
        name: [
            timing(pairs[name]).ratio(timing(pairs[NATIVE])) if name in pairs else None
            for pairs in figures.values()
            for timing in (_cold, _warm)
        ]
        for name in memory
        if name != NATIVE
    }
    plot = Bars("Through overlayfs: times as long as on the directory itself", "times", groups, ratios, 1.0, logarithmic=True)
    return Section("mount", "Mounts", method, tables, plot)


def _cold(pair: Pair) -> Timing:
    return pair.cold


def _warm(pair: Pair) -> Timing:
    return pair.warm


def _table(title: str, timing: Callable[[Pair], Timing], figures: Mapping[str, Mapping[str, Pair]]) -> Table:
    rows = []
    for name in next(iter(figures.values())):
        row = [name]
        for task in TASKS:
            pairs = figures[task.name]
            if name not in pairs:
                row.append("-")
                continue
            mine, native = timing(pairs[name]), timing(pairs[NATIVE])
            cell = f"{mine.median:.2f} s"
            if task.bytes is not None:
                cell = f"{statistics.median(task.bytes / seconds for seconds in mine.seconds) / 1e9:.2f} GB/s"
            row.append(cell if name == NATIVE else f"{cell} ({mine.ratio(native):.1f}×)")
        rows.append(row)
    return Table(f"{title.capitalize()}: median, and times as long as overlayfs", ("", *(task.name for task in TASKS)), rows)


if __name__ == "__main__":
    sys.exit(main())
