"""What starting from a registry costs: bytes, requests and seconds, lazily and as usual, over links of several kinds.

Debian's docker-registry stands in a network namespace behind a link that ``tc tbf`` shapes; in one case a relay before it adds
50 ms to every answer. Bytes and requests are what the registry's own access log says it sent. Every first start has a new
node: a containerd and a snapshotter without any state.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.corpus import debian as versions
from bench.report import ROOT, Bars, Section, Table, publish
from tests.support import debian, mounts
from tests.support.containerd import Containerd
from tests.support.dockerregistry import DockerRegistry
from tests.support.images import write_image
from tests.support.link import Link
from tests.support.processes import run
from tests.support.relay import Relay
from tests.support.snapshotter import Snapshotter, puzzlefs

COMMAND = ("python3", "-c", "import numpy; print(numpy.__version__)")
READ_ALL = ("/bin/sh", "-c", "tar cf - --one-file-system / 2>/dev/null | wc -c")
AT_ONCE = 10
LINKS = ("200mbit", "20mbit", "200mbit+50ms")
METHOD = """Debian's docker-registry in a network namespace behind `tc tbf`; `+50ms`: a relay before it that adds 50 ms to every
answer. Received bytes are the bodies that the registry's access log counts, requests its lines. A first start is
pull and `{command}` up to its output, on a node without any state (`puzzlefs pull`, or `ctr images pull` for overlayfs;
containerd, runc and `ctr run` are the same). Profile: the image after `puzzlefs optimize` with that command. Everything read
once: pull and `tar` of the whole root. Update: the next version of a Debian root, after the one before was read whole.
Medians of so many turns, in each of which all take part: {turns}; the least and the most seconds stand behind them."""
RESULTS = ROOT / ".tools" / "bench-pull.json"


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one thing that was done: seconds, bytes of the registry's answers, requests."""

    seconds: float
    received: int
    requests: int


class Place:
    """The registry, the way to it, and the images in it."""

    def __init__(self, work: Path, link: Link, delay: float) -> None:
        self.work = work
        self.registry = DockerRegistry(work / "registry", link, access_log=True)
        self.relay = Relay(self.registry.endpoint, delay=delay) if delay else None
        self.address = self.relay.address if self.relay else self.registry.address
        self.config = work / "config.toml"
        self.config.write_text(f'[registry."{self.address}"]\nplain_http = true\n')

    def reference(self, name: str) -> str:
        return f"{self.address}/bench/{name}"

    def close(self) -> None:
        if self.relay:
            self.relay.close()
        self.registry.stop()


class Node:
    """A machine without any image."""

    def __init__(self, place: Place, plugin: str) -> None:
        self.place = place
        self.plugin = plugin
        self.directory = Path(tempfile.mkdtemp(prefix="node-", dir=place.work))
        containerd = self.directory / "c"
        self.snapshotter = Snapshotter(
            self.directory / "s", plain_http=[place.address], containerd=containerd / "containerd.sock"
        )
        self.containerd = Containerd(containerd, self.snapshotter.socket)

    def pull(self, image: str) -> None:
        if self.plugin == "puzzlefs":
            self.snapshotter.pull(image, self.containerd.namespace)
        else:
            self.containerd.ctr("images", "pull", "--plain-http", "--snapshotter", self.plugin, image, timeout=600)

    def run(self, image: str, command: Sequence[str]) -> float:
        """Run a container to its end; the seconds until its first output."""
        return self.containerd.run(image, *command, snapshotter=self.plugin, timeout=600).seconds

    def measured(self, image: str, command: Sequence[str]) -> Cost:
        """Pull and run; the time ends with the command's first output, which both commands write at their end."""
        with counted(self.place) as cost:
            start = time.monotonic()
            self.pull(image)
            pulled = time.monotonic() - start
            seconds = pulled + self.run(image, command)
        return cost(seconds)

    def close(self) -> None:
        self.containerd.stop()
        self.snapshotter.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def node(place: Place, plugin: str) -> Iterator[Node]:
    made = Node(place, plugin)
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def counted(place: Place) -> Iterator[Callable[[float], Cost]]:
    """Gives what makes a `Cost` of seconds, with what the registry sent since the block began."""
    before = place.registry.served()
    yield lambda seconds: Cost(seconds, *(after - was for after, was in zip(place.registry.served(), before, strict=True)))


def measure(place: Place) -> dict[str, dict[str, Cost]]:
    """By what is done, by contestant."""
    contestants = {
        "PuzzleFS": ("puzzlefs", "numpy-lazy"),
        "PuzzleFS, profile": ("puzzlefs", "numpy-fast"),
        "overlayfs": ("overlayfs", "numpy-ordinary"),
    }
    found: dict[str, dict[str, Cost]] = {}
    for who, (plugin, image) in contestants.items():
        reference = place.reference(f"{image}:1")
        with node(place, plugin) as fresh:
            found.setdefault("first start", {})[who] = fresh.measured(reference, COMMAND)
            with counted(place) as cost:
                seconds = fresh.run(reference, COMMAND)
            found.setdefault("second start", {})[who] = cost(seconds)
        with node(place, plugin) as fresh:
            found.setdefault(f"{AT_ONCE} starts at once", {})[who] = together(fresh, reference)
        if who == "PuzzleFS, profile":
            continue
        with node(place, plugin) as fresh:
            found.setdefault("everything read once", {})[who] = fresh.measured(reference, READ_ALL)
        kind = "lazy" if plugin == "puzzlefs" else "ordinary"
        with node(place, plugin) as fresh:
            fresh.measured(place.reference(f"debian-{kind}:1"), READ_ALL)
            update = place.reference(f"debian-{kind}:2")
            found.setdefault("update, all of it read", {})[who] = fresh.measured(update, READ_ALL)
    return found


def together(fresh: Node, image: str) -> Cost:
    """Pull, and start ten containers at once; the time ends with the last one's first output."""
    times: list[float] = []
    with counted(fresh.place) as cost:
        start = time.monotonic()
        fresh.pull(image)
        pulled = time.monotonic() - start
        threads = [threading.Thread(target=lambda: times.append(fresh.run(image, COMMAND))) for _ in range(AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if len(times) != AT_ONCE:
        raise RuntimeError(f"{AT_ONCE - len(times)} of {AT_ONCE} containers failed")
    return cost(pulled + max(times))


def publish_images(place: Place) -> None:
    """Put the images into the registry, before the link is shaped."""
    source = debian.image()
    push(source.reference, place, "numpy-ordinary:1")
    convert(place, "numpy-ordinary:1", "numpy-lazy:1")
    lazy, fast = (f"docker://{place.reference(name)}" for name in ("numpy-lazy:1", "numpy-fast:1"))
    puzzlefs("optimize", lazy, fast, "--config", place.config, "--temporary", place.work, "--", *COMMAND)
    for number, tree in enumerate(versions.versions()[:2], 1):
        layer = place.work / "layer.tar"
        run("tar", "-C", tree, "--sort=name", "--numeric-owner", "-cf", layer, ".")
        image = write_image(place.work / f"layout{number}", f"v{number}", [layer.read_bytes()], READ_ALL)
        push(image.reference, place, f"debian-ordinary:{number}")
        convert(place, f"debian-ordinary:{number}", f"debian-lazy:{number}")
        layer.unlink()


def push(source: str, place: Place, name: str) -> None:
    run("skopeo", "copy", "--dest-tls-verify=false", source, f"docker://{place.reference(name)}", timeout=300)


def convert(place: Place, source: str, target: str) -> None:
    puzzlefs("convert", f"docker://{place.reference(source)}", f"docker://{place.reference(target)}", "--config", place.config)


def run_over(name: str) -> dict[str, dict[str, Cost]]:
    """Everything over the link `name`."""
    rate, _, delay = name.partition("+")
    work = Path(tempfile.mkdtemp(prefix="bench-pull-", dir=ROOT / ".tools" / "tmp"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        stack.callback(mounts.unmount_all, work)
        link = Link()
        stack.callback(link.close)
        place = Place(work, link, float(delay.removesuffix("ms") or 0) / 1000)
        stack.callback(place.close)
        publish_images(place)
        link.shape(rate)
        return measure(place)


Turn = dict[str, dict[str, Cost]]
"""What was done, by whom."""


def middle(costs: Sequence[Cost]) -> Cost:
    """The medians, each by itself."""
    return Cost(
        statistics.median(cost.seconds for cost in costs),
        statistics.median_low(cost.received for cost in costs),
        statistics.median_low(cost.requests for cost in costs),
    )


def section(results: dict[str, list[Turn]]) -> Section:
    """What docs/benchmarks.md says."""
    tables = []
    series: dict[str, list[float | None]] = {}
    for link, turns in results.items():
        rows = []
        for what, costs in turns[0].items():
            usual = middle([turn[what]["overlayfs"] for turn in turns])
            for who in costs:
                each = [turn[what][who] for turn in turns]
                cost = middle(each)
                seconds = f"{cost.seconds:.2f} s"
                if len(turns) > 1:
                    seconds += f" ({min(c.seconds for c in each):.2f}–{max(c.seconds for c in each):.2f})"
                sizes = [f"{cost.received / 1e6:.1f} MB", str(cost.requests)]
                rows.append([f"{what}: {who}", seconds, f"{cost.seconds / usual.seconds:.2f}", *sizes])
                if what == "first start":
                    series.setdefault(who, []).append(cost.seconds)
        tables.append(Table(f"Link: {link}", ["", "seconds", "× overlayfs", "received", "requests"], rows))
    return Section(
        "pull",
        "Starting from a registry",
        METHOD.format(
            command=" ".join(COMMAND),
            turns=", ".join(f"{link} {len(turns)}" for link, turns in results.items()),
        ),
        tables,
        Bars("First start", "seconds", list(results), series, logarithmic=True),
    )


def main() -> int:
    """Measure over the links that are named, and write the section with what is known of all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--link", action="append", choices=LINKS, help="only this one; may be repeated")
    parser.add_argument("--again", action="store_true", help="one more turn, beside those that are known")
    told = parser.parse_args()
    (ROOT / ".tools" / "tmp").mkdir(parents=True, exist_ok=True)
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in told.link or LINKS:
        found = run_over(name)
        turn = {what: {who: asdict(cost) for who, cost in costs.items()} for what, costs in found.items()}
        known[name] = [*(known.get(name, []) if told.again else []), turn]
        RESULTS.write_text(json.dumps(known, indent=1))
    results = {
        name: [
            {what: {who: Cost(**cost) for who, cost in costs.items()} for what, costs in turn.items()} for turn in known[name]
        ]
        for name in LINKS
        if name in known
    }
    publish(section(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
