"""What this project is for, in one minute and one table: the same image, the same container, lazily and as usual.

Run by ``make demo``. Everything it starts (a registry, two containerds, the snapshotter) has directories, sockets and a
network namespace of its own and is gone at the end, however it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.support import debian, mounts
from tests.support.containerd import Containerd
from tests.support.dockerregistry import DockerRegistry
from tests.support.link import Link
from tests.support.processes import CommandError, run
from tests.support.relay import Relay
from tests.support.snapshotter import Snapshotter, puzzlefs
from tests.support.tools import MissingToolError

COMMAND = ("python3", "-c", "import numpy; print(numpy.__version__)")

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Result:
    """One way of starting the container: sizes in bytes, times in seconds from the start of the pull."""

    name: str
    image: int
    fetched: int
    pulled: float
    first_output: float
    output: str


def main() -> int:
    """Run the demonstration; the exit status of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--link", metavar="RATE", help="put the registry behind a link of this rate, as tc writes it: 200mbit")
    arguments = parser.parse_args()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    for number in _ENDING:
        signal.signal(number, _end)
    try:
        with contextlib.ExitStack() as stack:
            results, link = _demonstrate(stack, console, arguments.link)
    except (CommandError, MissingToolError, debian.NoMirrorError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; everything it had started is stopped", file=sys.stderr)
        return 130
    _print(console, results, link)
    return 0


def _end(number: int, _: object) -> None:
    """Leave by an exception, so that everything is cleaned up, and let no second signal disturb that."""
    for each in _ENDING:
        signal.signal(each, signal.SIG_IGN)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def _demonstrate(stack: contextlib.ExitStack, console: Console, rate: str | None) -> tuple[list[Result], str]:
    source = debian.image()
    work = Path(tempfile.mkdtemp(prefix="puzzlefs-demo-"))
    stack.callback(shutil.rmtree, work)
    stack.callback(mounts.unmount_all, work)

    link = _link(console, rate) if rate else None
    if link:
        stack.callback(link.close)
    registry = DockerRegistry(work / "registry", link)
    stack.callback(registry.stop)
    relay = Relay(registry.endpoint)
    stack.callback(relay.close)
    ordinary, lazy = f"{relay.address}/demo/debian-numpy:ordinary", f"{relay.address}/demo/debian-numpy:puzzlefs"

    console.print(f"pushing the ordinary image ({_megabytes(debian.compressed_size(source.layout))}) to a registry of our own")
    run("skopeo", "copy", "--dest-tls-verify=false", source.reference, f"docker://{ordinary}")
    start = time.monotonic()
    puzzlefs("convert", f"docker://{ordinary}", f"docker://{lazy}")
    console.print(f"converted it to PuzzleFS in {time.monotonic() - start:.1f} s")
    if link and rate:
        link.shape(rate)

    snapshotter = Snapshotter(
        work / "snapshotter", plain_http=[relay.address], containerd=work / "puzzlefs" / "containerd.sock"
    )
    stack.callback(snapshotter.stop)
    results = []
    for name, image, plugin in (("puzzlefs, lazily", lazy, "puzzlefs"), ("overlayfs", ordinary, "overlayfs")):
        console.print(f"pulling and running {image} with {plugin}")
        # a containerd for each, so that neither finds what the other has fetched
        containerd = Containerd(work / plugin, snapshotter.socket)
        try:
            results.append(_first_start(name, image, plugin, containerd, snapshotter, relay, _size(registry, image)))
        finally:
            containerd.stop()
    return results, f"{rate} to the registry" if link else "no limit on the link"


def _first_start(
    name: str, image: str, plugin: str, containerd: Containerd, snapshotter: Snapshotter, relay: Relay, size: int
) -> Result:
    relay.reset()
    start = time.monotonic()
    if plugin == "puzzlefs":
        snapshotter.pull(image, containerd.namespace)
    else:
        containerd.ctr("images", "pull", "--plain-http", "--snapshotter", plugin, image)
    pulled = time.monotonic()
    started = containerd.run(image, *COMMAND, snapshotter=plugin)
    return Result(name, size, relay.received, pulled - start, pulled - start + started.seconds, started.text.strip())


def _link(console: Console, rate: str) -> Link | None:
    try:
        return Link()
    except CommandError as error:
        console.print(f"no link of {rate}: this machine does not allow a network namespace ({error})", style="yellow")
        return None


def _size(registry: DockerRegistry, image: str) -> int:
    repository, _, tag = image.split("/", 1)[1].rpartition(":")
    return sum(layer["size"] for layer in registry.manifest(repository, tag)["layers"])


def _print(console: Console, results: list[Result], link: str) -> None:
    table = Table(title=f"First start of: {' '.join(COMMAND)}", caption=f"{link}; bytes and seconds from the start of the pull")
    for heading in ("", "image size", "bytes fetched", "pulled after", "first output after", "output"):
        table.add_column(heading, justify="left" if heading in ("", "output") else "right")
    for result in results:
        sizes = (_megabytes(result.image), _megabytes(result.fetched))
        table.add_row(result.name, *sizes, f"{result.pulled:.2f} s", f"{result.first_output:.2f} s", result.output)
    console.print(table)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
