"""``puzzlefs status``: what the daemon of this node is doing now."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from snapshotter.cli.output import size
from snapshotter.cli.sockets import daemon_address, daemon_options
from snapshotter.daemon import statusclient
from snapshotter.format.printable import printable

SHOWN_MAX = 20
"""Most waiting reads and most errors that are shown to a person; JSON has all that the daemon tells."""


@click.command(short_help="Show what the daemon is doing now.")
@daemon_options
@click.option("-w", "--watch", type=click.FloatRange(0.1, 3600), metavar="SECONDS", help="Show it again and again.")
@click.option("--json", "as_json", is_flag=True, help="Print what the daemon answers, as JSON.")
def status(config_path: Path | None, socket: Path | None, watch: float | None, as_json: bool) -> None:
    """Show what the daemon is doing now: containerd's and podman's images and how much of each is here, workers, reads that
    wait and for what, the cache, and the last errors.
    """
    address = daemon_address(config_path, socket)
    if as_json:
        print(json.dumps(statusclient.status(address)))
        while watch is not None:
            time.sleep(watch)
            print(json.dumps(statusclient.status(address)), flush=True)
        return
    console = Console(highlight=False)
    if watch is None:
        console.print(shown(statusclient.status(address), datetime.now(UTC)))
        return
    with Live(shown(statusclient.status(address), datetime.now(UTC)), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(watch)
            live.update(shown(statusclient.status(address), datetime.now(UTC)), refresh=True)


def shown(told: Mapping[str, Any], now: datetime) -> RenderableType:
    """What the daemon `told` (`daemon.status.Overview.to_json`), for a person at the time `now`."""
    return Group(*_parts(told, now))


def _parts(told: Mapping[str, Any], now: datetime) -> Iterator[RenderableType]:
    yield from _summary(told, now)
    for of, heading in (("containerd", "IMAGE"), ("podman", "IMAGE OF PODMAN")):
        images = {name: image for name, image in told["images"].items() if of in image["of"]}
        if images:
            yield from ("", _images(heading, images))
    yield from ("", _workers(told["workers"]))
    if told["failed"]:
        yield from (
            "",
            _table(("LAYER THAT IS NOT MOUNTED", "WHY"), [(_short(layer), why) for layer, why in told["failed"].items()]),
        )
    if told["fetching"]:
        yield from ("", _fetching(told))
    if told["errors"]:
        rows = [(error["time"][11:19], error["level"], error["message"]) for error in told["errors"][-SHOWN_MAX:]]
        yield from ("", _table(("AT (UTC)", "", "LAST ERRORS"), rows))


def _summary(told: Mapping[str, Any], now: datetime) -> Iterator[Text]:
    seconds = (now - datetime.fromisoformat(told["started"])).total_seconds()
    mounted = f"{len(told['layers'])} layers of {len(told['images'])} images"
    yield Text(f"puzzlefs-snapshotter {printable(told['program'])}, up {_duration(seconds)}: {mounted}", style="bold")
    cache = told["cache"]
    cap = f" of {size(cache['max'])}" if cache["max"] else ", no cap"
    filled = f"{size(cache['used'])}{cap} in {cache['chunks']} chunks"
    yield Text(f"cache  {filled}, {size(cache['free'])} free at {printable(cache['path'])}")
    kept = f", of which up to {size(cache['reserve'])} are kept" if cache["max"] else ""
    yield Text(f"       {size(cache['recent'])} read by containers within a day{kept}")
    reads, fetches = told["reads"]["read"], told["reads"]["fetch"]
    line = Text(f"reads  {reads['in_flight']} under way, {fetches['in_flight']} of them wait for a fetch, ")
    line.append(f"{reads['hung']} hung", style="bold red" if reads["hung"] else "")
    line.append(f", {reads['failed']} of {reads['done']} failed")
    yield line
    for name, value in told["background"].items():
        yield Text(f"background {printable(str(name))}: {printable(json.dumps(value))}")


def _images(heading: str, images: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = []
    for name, image in sorted(images.items()):
        here = f"{size(image['stored_local'])} of {size(image['stored'])}"
        part = f"{100 * image['ratio']:.0f} %"
        rows.append((name, str(len(image["layers"])), here, part, size(image["disk"])))
    return _table((heading, "LAYERS", "FETCHED", "CHUNKS", "ON DISK"), rows, right=(1, 2, 3, 4))


def _workers(workers: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        (
            str(worker["number"]),
            str(worker["pid"] or "none"),
            str(worker["mounts"]),
            _duration(worker["seconds"]),
            str(worker["deaths"]),
            "" if worker["answers"] else "does not answer",
        )
        for worker in workers
    ]
    return _table(("WORKER", "PID", "MOUNTS", "UP", "DEATHS", ""), rows, right=(0, 1, 2, 3, 4))


def _fetching(told: Mapping[str, Any]) -> Table:
    rows = []
    for read in told["fetching"][:SHOWN_MAX]:
        mounts = told["layers"].get(read["layer"], {}).get("mounts", [])
        images = dict.fromkeys(image for mount in mounts for image in mount["images"])
        image = ", ".join(images) or _short(read["layer"])
        rows.append((image, _short(read["chunk"]), f"{read['seconds']:.1f} s", str(read["worker"])))
    return _table(("WAITS FOR A FETCH", "CHUNK", "SINCE", "WORKER"), rows, right=(2, 3))


def _table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]], right: tuple[int, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for at, heading in enumerate(headings):
        if at in right:
            table.add_column(heading, justify="right", no_wrap=True)
        else:
            table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def _short(digest: str) -> str:
    return digest[:19]


def _duration(seconds: float) -> str:
    """The two largest units: ``5 s``, ``3 min 20 s``, ``2 h 5 min``, ``4 d 1 h``."""
    left = int(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if left >= length or (unit == "s" and not parts):
            parts.append(f"{left // length} {unit}")
        left %= length
    return " ".join(parts[:2])
