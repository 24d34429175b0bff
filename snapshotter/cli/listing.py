"""``puzzlefs images``: what containerd's images take on this node, and which of them are lazy."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from snapshotter.cli.output import size
from snapshotter.cli.sockets import containerd_option
from snapshotter.doctor.images import ImageFacts
from snapshotter.doctor.inventory import Inventory
from snapshotter.format.printable import printable


@click.command(short_help="List containerd's images and how lazy they are.")
@containerd_option
@click.option("--snapshotter", default="puzzlefs", show_default=True, help="Name under which containerd knows the snapshotter.")
@click.option("--lazy", is_flag=True, help="Only images with layers that are mounted lazily.")
@click.option("-q", "--quiet", is_flag=True, help="Only namespace and name, separated by a space.")
@click.option("--json", "as_json", is_flag=True, help="Print the images as JSON.")
def images(address: Path, snapshotter: str, lazy: bool, quiet: bool, as_json: bool) -> None:
    """List the images of every namespace: how many layers are mounted lazily, the size of all, what of it is here.

    What is here counts shared chunks for each image; DOWNLOADED is what containerd's content store has of the layers.
    """
    with Inventory(address) as inventory:
        found = [image for image in inventory.images(snapshotter) if image.lazy_layers or not lazy]
    if as_json:
        print(json.dumps({"images": [_fields(image) for image in found]}))
    elif quiet:
        for image in found:
            print(f"{printable(image.namespace)} {printable(image.name)}")
    else:
        _print(found)


def _fields(image: ImageFacts) -> dict[str, object]:
    return {
        "namespace": image.namespace,
        "name": image.name,
        "layers": len(image.layers),
        "lazy_layers": image.lazy_layers,
        "size": image.size,
        "cached": image.cached,
        "downloaded": image.downloaded,
        **({"error": image.error} if image.error else {}),
    }


def _print(found: list[ImageFacts]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("NAMESPACE", "IMAGE"):
        table.add_column(heading, overflow="fold")
    for heading in ("LAZY", "SIZE", "HERE", "DOWNLOADED"):
        table.add_column(heading, justify="right", no_wrap=True)
    for image in found:
        name = Text(printable(image.name))
        if image.error:
            name.append(f" ({printable(image.error)})", style="yellow")
        figures = (size(image.size), size(image.cached), size(image.downloaded))
        table.add_row(Text(printable(image.namespace)), name, f"{image.lazy_layers}/{len(image.layers)}", *figures)
    Console(highlight=False).print(table)
