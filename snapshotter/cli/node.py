"""Commands that concern this node: what containerd and the snapshotter have."""

from __future__ import annotations

import json
from pathlib import Path

import click

from snapshotter.cli.output import reporter, size
from snapshotter.cli.registries import config_option, registries
from snapshotter.cli.signals import ended_by_signals
from snapshotter.daemon.anyhost import AnyHost
from snapshotter.daemon.containerd import DEFAULT_ADDRESS, DEFAULT_NAMESPACE, Containerd
from snapshotter.daemon.pull import LayerDone
from snapshotter.daemon.pull import pull as pull_image
from snapshotter.format.digest import to_text
from snapshotter.registry import reference as references
from snapshotter.registry.platforms import Platform

address_option = click.option(
    "-a",
    "--address",
    type=click.Path(path_type=Path),
    envvar="CONTAINERD_ADDRESS",
    default=DEFAULT_ADDRESS,
    show_default=True,
    help="containerd's socket.",
)


@click.command(short_help="Pull an image into containerd without downloading it.")
@click.argument("ref")
@address_option
@click.option(
    "-n",
    "--namespace",
    envvar="CONTAINERD_NAMESPACE",
    default=DEFAULT_NAMESPACE,
    show_default=True,
    help="containerd's namespace.",
)
@click.option("--snapshotter", default="puzzlefs", show_default=True, help="Name under which containerd knows the snapshotter.")
@click.option("--platform", help="OS/ARCHITECTURE[/VARIANT], for images with several.  [default: this machine's]")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def pull(
    ref: str, address: Path, namespace: str, snapshotter: str, platform: str | None, config_path: Path | None, as_json: bool
) -> None:
    """Pull the image REF into containerd, so that it can be started at once.

    Layers in the PuzzleFS format are mounted, not downloaded: their data is fetched when it is read. Ordinary layers of the
    image are downloaded and unpacked. Afterwards `ctr run --snapshotter puzzlefs REF …` starts it.
    """
    reference = references.parse(ref).with_default_tag()
    wanted = Platform.parse(platform) if platform else Platform.of_this_machine()
    with (
        ended_by_signals(),
        registries(config_path) as hosts,
        Containerd(address, namespace) as containerd,
        reporter() as report,
    ):
        source = AnyHost(hosts, reference)

        def done(layer: LayerDone) -> None:
            what = "mounted" if layer.lazy else f"downloaded, {size(layer.layer.size)}"
            report.step(f"layer {layer.number}/{layer.count} {to_text(layer.layer.digest)[:19]} {what}")

        pulled = pull_image(containerd, source, reference, snapshotter=snapshotter, platform=wanted, progress=done)
    received = hosts.traffic.received
    if as_json:
        fields = {"name": pulled.name, "digest": to_text(pulled.manifest), "chain_id": to_text(pulled.chain)}
        counts = {"layers": pulled.layers, "lazy_layers": pulled.lazy_layers, "bytes_received": received}
        print(json.dumps({**fields, **counts}))
    else:
        lazy = f"{pulled.lazy_layers} of {pulled.layers} layers lazy"
        print(f"{pulled.name}@{to_text(pulled.manifest)}: {lazy}, {size(received)} received")
