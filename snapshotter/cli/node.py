"""Commands that have the daemon of this node do something."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from snapshotter.cli.output import Reporter, reporter, size
from snapshotter.cli.signals import ended_by_signals
from snapshotter.cli.sockets import daemon_address, daemon_options
from snapshotter.daemon import pullclient
from snapshotter.daemon.pullproto import Event, LayerArriving, LayerDone, PullRequest


@click.command(short_help="Pull an image into containerd without downloading it.")
@click.argument("ref")
@daemon_options
@click.option(
    "-n",
    "--namespace",
    envvar="CONTAINERD_NAMESPACE",
    default="default",
    show_default=True,
    help="containerd's namespace.",
)
@click.option("--snapshotter", default="puzzlefs", show_default=True, help="Name under which containerd knows the snapshotter.")
@click.option("--platform", help="OS/ARCHITECTURE[/VARIANT], for images with several.  [default: this machine's]")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def pull(
    ref: str,
    config_path: Path | None,
    socket: Path | None,
    namespace: str,
    snapshotter: str,
    platform: str | None,
    as_json: bool,
) -> None:
    """Have the daemon pull the image REF into its containerd, so that it can be started at once.

    Layers in the PuzzleFS format are mounted, not downloaded: their data is fetched when it is read. Ordinary layers of the
    image are downloaded and unpacked. Registries, mirrors and credentials are those of the daemon. Afterwards
    `ctr run --snapshotter puzzlefs REF …` starts it. Interrupting the command ends the pull.
    """
    request = PullRequest(ref, namespace, snapshotter, platform)
    with ended_by_signals(), reporter() as report:
        pulled = pullclient.pull(daemon_address(config_path, socket), request, lambda event: _show(event, report))
    if as_json:
        fields = asdict(pulled)
        renamed = {"digest": fields.pop("manifest"), "chain_id": fields.pop("chain"), "bytes_received": fields.pop("received")}
        print(json.dumps({**fields, **renamed}))
    else:
        lazy = f"{pulled.lazy_layers} of {pulled.layers} layers lazy"
        print(f"{pulled.name}@{pulled.manifest}: {lazy}, {size(pulled.received)} received")


def _show(event: Event, report: Reporter) -> None:
    if isinstance(event, LayerArriving):
        report.advance(f"layer {event.digest[:19]}", event.received, event.size)
    elif isinstance(event, LayerDone):
        fetched = f"downloaded, {size(event.downloaded)}" if event.downloaded else "here already"
        report.step(f"layer {event.number}/{event.count} {event.digest[:19]} {'mounted' if event.lazy else fetched}")
