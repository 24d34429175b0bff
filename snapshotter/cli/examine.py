"""Commands that look into images: whether they are right, what they hold, what a node fetches for the next one."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from snapshotter.build.contents import ImageContent, manifests, opened
from snapshotter.build.difference import Difference, difference
from snapshotter.build.inspection import ImageFigures
from snapshotter.build.inspection import inspect as inspect_image
from snapshotter.build.progress import Progress
from snapshotter.build.verify import verify as verify_image
from snapshotter.chunkstore.scan import scan
from snapshotter.cli import exits
from snapshotter.cli.output import Reporter, reporter, size
from snapshotter.cli.registries import config_option, configuration, registries
from snapshotter.cli.signals import ended_by_signals
from snapshotter.errors import CorruptError, FailedPreconditionError, NotFoundError
from snapshotter.format.digest import to_text
from snapshotter.registry import transports
from snapshotter.registry.platforms import Platform

FILES_SHOWN = 20

_json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
_platform_option = click.option(
    "--platform", help="OS/ARCHITECTURE[/VARIANT], for images with several.  [default: this machine's]"
)


@contextlib.contextmanager
def _places(config_path: Path | None, *images: str) -> Iterator[list[transports.Opened]]:
    """The places of images; all texts are checked before anything is touched."""
    locations = [transports.parse_any(image) for image in images]
    with ended_by_signals(), contextlib.ExitStack() as stack:
        hosts = stack.enter_context(registries(config_path))
        found = []
        for location in locations:
            place = transports.open_source(location, hosts)
            stack.callback(place.store.close)
            found.append(place)
        yield found


@contextlib.contextmanager
def _open(places: Sequence[transports.Opened], platform: str | None) -> Iterator[list[ImageContent]]:
    wanted = Platform.parse(platform) if platform else Platform.of_this_machine()
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(opened(place.store, manifests(place.store, place.reference, wanted)[0])) for place in places]


@click.command(short_help="Check an image, to the last byte.")
@click.argument("image", metavar="IMAGE")
@config_option
@_json_option
def verify(image: str, config_path: Path | None, as_json: bool) -> None:
    """Check everything that can be checked of IMAGE, every platform of it, and say what is wrong.

    Digests of all blobs, the metadata's rules, fs-verity digests, the indexes of packs, and that every chunk can be reached,
    decodes, and is what its name says. All of the image is read. IMAGE is OCI_DIR:TAG, oci:DIR:TAG, oci-archive:FILE:TAG,
    docker://HOST/REPOSITORY:TAG or HOST/REPOSITORY:TAG. Exit status 5 if anything is wrong with it.

    `puzzlefs verify cache` checks what this node keeps: chunks, indexes of packs, and the metadata of layers.
    """
    if image == "cache":
        _verify_cache(configuration(config_path)[0].root, as_json)
        return
    with _places(config_path, image) as (place,), reporter() as report:
        done = verify_image(place.store, place.reference, partial(_advance, report))
    if as_json:
        print(json.dumps({**asdict(done), "image": image}))
    else:
        for finding in done.findings:
            prefix = f"{finding.image}: " if done.images > 1 else ""
            print(f"{finding.severity}: {prefix}{exits.one_line(Exception(finding.problem))}")
        if done.errors > len(done.findings):
            print(f"and {done.errors - len(done.findings)} more errors")
        print(f"{image}: {size(done.bytes)} in {done.blobs} blobs, {done.inodes} inodes, {done.chunks} chunks checked")
    if done.errors:
        raise CorruptError(f"{image} is corrupt: {_count(done.errors)}")


def _verify_cache(root: Path, as_json: bool) -> None:
    if not os.path.lexists(root):
        raise NotFoundError(f"{root} does not exist: no snapshotter has run here, or --config is to name another configuration")
    try:
        with ended_by_signals(), reporter() as report:
            done = scan(root, progress=lambda number, total: report.advance(f"checking {root}", number, total))
    except OSError as error:
        raise FailedPreconditionError(f"cannot look into {error.filename}: {error.strerror}; run as root") from None
    if as_json:
        print(json.dumps({**asdict(done), "root": str(root)}))
    else:
        for problem in done.problems:
            print(f"error: {problem}")
        kept = f"{done.chunks} chunks, {done.indexes} indexes of packs, metadata of {done.metadata} layers"
        print(f"{root}: {size(done.bytes)} in {kept} checked")
    if done.errors:
        raise CorruptError(f"{root} is corrupt: {_count(done.errors)}; the daemon drops what is, and fetches it again")


def _count(errors: int) -> str:
    return "one thing is wrong with it" if errors == 1 else f"{errors} things are wrong with it"


def _advance(report: Reporter, now: Progress) -> None:
    report.advance(f"checking {now.what}", now.done, now.total)


@click.command(short_help="Show what an image holds.")
@click.argument("image", metavar="IMAGE")
@_platform_option
@config_option
@_json_option
def inspect(image: str, platform: str | None, config_path: Path | None, as_json: bool) -> None:
    """Show the layers, files, chunks and packs of IMAGE, and what they share.

    Nothing but metadata and the packs' indexes is read. IMAGE as for `puzzlefs verify`.
    """
    with _places(config_path, image) as places, _open(places, platform) as (content,):
        figures = inspect_image(content)
    if as_json:
        print(json.dumps(_plain(asdict(figures))))
    else:
        _show_image(figures)


@click.command(short_help="Show what a node that has one image fetches for another.")
@click.argument("old", metavar="A")
@click.argument("new", metavar="B")
@_platform_option
@click.option("--all", "every_file", is_flag=True, help=f"List all files, not only the first {FILES_SHOWN}.")
@config_option
@_json_option
def diff(old: str, new: str, platform: str | None, every_file: bool, config_path: Path | None, as_json: bool) -> None:
    """Show which bytes a node that has all of image A must fetch to have all of image B, in total and by file.

    Images as for `puzzlefs verify`. Chunks are compared by content, however the two images store them.
    """
    with _places(config_path, old, new) as places, _open(places, platform) as (first, second):
        found = difference(first, second)
    if as_json:
        print(json.dumps({**asdict(found), "total": found.total}))
    else:
        _show_difference(found, None if every_file else FILES_SHOWN)


def _plain(value: Any) -> Any:
    """With digests as text."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return "sha256:" + value.hex() if isinstance(value, bytes) else value


def _show_image(image: ImageFigures) -> None:
    print(f"{image.name}@{to_text(image.digest)}")
    said = ", ".join(text for text in (image.platform, image.created and f"created {image.created}", image.form) if text)
    print(said)
    table = _table("layer", "metadata", ">inodes", ">files", ">size of files", ">chunks", ">shared", ">new, stored")
    for number, layer in enumerate(image.layers, 1):
        inodes = layer.files + layer.directories + layer.links + layer.others + layer.whiteouts
        table.add_row(
            f"{number} {to_text(layer.diff_id)[7:19]}",
            f"{size(layer.stored)}{f' ({layer.layers} deltas)' if layer.layers > 1 else ''}",
            f"{inodes:,}",
            f"{layer.files:,}",
            size(layer.file_bytes),
            f"{layer.chunks:,}",
            size(layer.shared_bytes),
            size(layer.new_stored),
        )
    _print(table)
    if image.packs:
        table = _table("pack", ">size", ">chunks", ">needed", ">bytes needed")
        for pack in image.packs:
            needed = (f"{pack.needed_chunks:,}", size(pack.needed_bytes))
            table.add_row(to_text(pack.digest)[7:19], size(pack.size), f"{pack.chunks:,}", *needed)
        _print(table)
    saved = f", {1 - image.unique_bytes / image.file_bytes:.1%} less" if image.unique_bytes < image.file_bytes else ""
    print(
        f"{image.inodes:,} inodes, {size(image.file_bytes)} in files; {image.chunks:,} distinct chunks of"
        f" {size(image.unique_bytes)}{saved}, stored in {size(image.stored_bytes)}"
    )
    print(f"{size(image.download)} in all")
    if image.ordinary_layers:
        print(f"and {image.ordinary_layers} ordinary layers, which are not looked into")
    if image.missing_chunks:
        print(f"{image.missing_chunks} chunks are nowhere to be found: see puzzlefs verify")


def _show_difference(found: Difference, shown: int | None) -> None:
    table = _table("to fetch", ">bytes")
    table.add_row("manifest and configuration", size(found.documents))
    table.add_row("metadata layers", size(found.metadata))
    table.add_row("indexes of packs", size(found.indexes))
    table.add_row(f"{found.chunks:,} chunks, {size(found.raw_bytes)} uncompressed", size(found.chunk_bytes))
    if found.ordinary:
        table.add_row("ordinary layers", size(found.ordinary))
    table.add_row("in all", size(found.total))
    _print(table)
    print(f"{size(found.have_bytes)} of file data are there already")
    if not found.files:
        return
    table = _table(">fetched", ">new data", ">size", "file")
    for file in found.files[:shown]:
        table.add_row(size(file.fetch), size(file.new), size(file.size), exits.one_line(Exception(file.path)))
    _print(table)
    if shown is not None and len(found.files) > shown:
        print(f"and {len(found.files) - shown:,} more files (--all lists them)")


def _table(*headings: str) -> Table:
    """An empty table; a heading that begins with ``>`` has its column to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading.removeprefix(">"), justify="right" if heading.startswith(">") else "left", overflow="fold")
    return table


def _print(table: Table) -> None:
    # Where nobody watches, lines are as long as they need to be.
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 240, highlight=False, markup=False).print(table)
