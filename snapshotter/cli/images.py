"""Commands that make images and bring them to where they are served."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from snapshotter.build.image import Converted, Options
from snapshotter.build.image import convert as convert_image
from snapshotter.build.progress import Progress
from snapshotter.cli.collector import collector_paused
from snapshotter.cli.output import Reporter, reporter, size
from snapshotter.cli.registries import LateRegistries, config_option
from snapshotter.cli.signals import ended_by_signals
from snapshotter.format.compression import DEFAULT_LEVEL
from snapshotter.format.digest import to_text
from snapshotter.registry import transports
from snapshotter.registry.base import ImageStore
from snapshotter.registry.transports import DockerLocation, Location

_DIGEST = re.compile(r"(sha256:[0-9a-f]{12})[0-9a-f]{52}")


@dataclass(frozen=True, slots=True)
class _Request:
    """What both commands are told."""

    source: str
    destination: str
    reuse: tuple[str, ...]
    level: int
    temporary: Path | None
    config_path: Path | None
    as_json: bool


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """The arguments and options of a command that makes an image of SRC at DST."""
    for add in reversed(
        (
            click.argument("source", metavar="SRC"),
            click.argument("destination", metavar="DST"),
            click.option(
                "--reuse",
                multiple=True,
                metavar="IMAGE",
                help="Also reuse the packs of this image (docker://…). May be repeated.",
            ),
            click.option("--level", type=click.IntRange(1, 19), default=DEFAULT_LEVEL, show_default=True, help="zstd's level."),
            click.option(
                "--temporary",
                type=click.Path(path_type=Path, file_okay=False),
                envvar="TMPDIR",
                help="Where to keep compressed chunks until the packs are written; about as large as the image.",
            ),
            config_option,
            click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
        )
    ):
        command = add(command)
    return command


@click.command(short_help="Convert an ordinary image to the PuzzleFS format.")
@_options
def convert(**told: Any) -> None:
    """Convert the image SRC, every layer of every platform, and store it as DST.

    Both are docker://HOST/REPOSITORY:TAG, oci:DIR:TAG or oci-archive:FILE:TAG. Chunks that the destination's repository has
    already (in the image that now has the tag, and in its most recent tags) are not stored again.
    """
    _make(convert_image, _Request(**told))


@click.command(short_help="Push an image that was built in an OCI layout.")
@_options
def push(**told: Any) -> None:
    """Bring the image SRC that `puzzlefs build` (or upstream's program) made to DST, in the form that containerd can run.

    SRC is oci:DIR:TAG or oci-archive:FILE:TAG, DST also docker://HOST/REPOSITORY:TAG.
    """
    from snapshotter.build.push import push as push_image  # imported where it is needed: it takes 20 ms with what it reads

    _make(push_image, _Request(**told))


def _make(make: Callable[..., Converted], told: _Request) -> None:
    """Run `make` (``convert`` or ``push``) between the places that were named, and print what it made."""
    with (
        collector_paused(),
        _places(told.source, told.destination, told.reuse, told.config_path) as (source, destination, target, named),
        reporter() as report,
    ):
        done = make(
            source.store,
            source.reference,
            destination.store,
            destination.reference,
            destination_name=_served_as(target),
            reuse=named,
            options=Options(level=told.level, temporary=told.temporary),
            report=_shown(report),
        )
    _print(target, done, told.as_json)


_Places = tuple[transports.Opened, transports.Opened, Location, Sequence[tuple[ImageStore, str]]]


@contextlib.contextmanager
def _places(source: str, destination: str, reuse: Sequence[str], config_path: Path | None) -> Iterator[_Places]:
    """Source, destination, where the latter is, and the images to reuse; all texts are checked before anything is touched."""
    src, dst, extra = transports.parse(source), transports.parse(destination), [transports.parse(text) for text in reuse]
    with ended_by_signals(), contextlib.ExitStack() as stack:
        hosts = stack.enter_context(LateRegistries(config_path))
        opened = transports.open_source(src, hosts)
        stack.callback(opened.store.close)
        named = [transports.open_source(location, hosts) for location in extra]
        for place in named:
            stack.callback(place.store.close)
        target = transports.open_destination(dst, hosts)
        stack.callback(target.store.close)  # writes an archive if all went well, and removes what was gathered if it did not
        yield opened, target, dst, [(place.store, place.reference) for place in named]


def _served_as(location: Location) -> str | None:
    """The reference under which the image can be pulled, where the destination is a registry."""
    return location.reference.with_default_tag().canonical if isinstance(location, DockerLocation) else None


def _shown(report: Reporter) -> Callable[[Progress], None]:
    verbs = {"read": "reading", "push": "storing"}

    def show(progress: Progress) -> None:
        if progress.stage == "note":
            report.step(progress.what)
        else:
            what = _DIGEST.sub(r"\1", progress.what)  # whole, it would leave no room for the bar
            report.advance(f"{verbs.get(progress.stage, progress.stage)} {what}", progress.done, progress.total)

    return show


def _print(target: Location, done: Converted, as_json: bool) -> None:
    digest = to_text(done.manifest.digest)
    if as_json:
        fields = {key: value for key, value in asdict(done).items() if key != "manifest"}
        print(json.dumps({"image": str(target), "digest": digest, **fields}))
        return
    packs = f"{done.packs_new} new packs, {done.packs_reused} reused"
    print(f"{target}@{digest}")
    print(f"{size(done.source)} in {done.layers} layers ({size(done.tar)} uncompressed): {size(done.pushed)} stored, {packs}")
