"""``puzzlefs optimize``: an image with a start profile."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import click

from snapshotter.build import profile as profiles
from snapshotter.build.optimize import Optimized, find_image
from snapshotter.build.optimize import optimize as optimize_image
from snapshotter.build.progress import Progress
from snapshotter.cli.output import Reporter, reporter, size
from snapshotter.cli.registries import config_option, configuration
from snapshotter.cli.signals import ended_by_signals
from snapshotter.daemon.config import Config
from snapshotter.daemon.reach import Reach
from snapshotter.errors import InvalidError, NotFoundError
from snapshotter.format.annotations import MEDIA_TYPE_METADATA, MEDIA_TYPE_PACK, MetadataLayer, parse
from snapshotter.format.digest import Digest, to_text
from snapshotter.registry import transports
from snapshotter.registry.platforms import Platform
from snapshotter.registry.transports import DockerLocation, Location, Opened


@click.command(short_help="Give an image a start profile: what a start reads, to be fetched at once.")
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--profile",
    "profile_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Run nothing: take the start that is recorded in this file.",
)
@click.option(
    "--save",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    help="Also write the start that was recorded to this file, for --profile.",
)
@click.option(
    "--quiet", type=click.FloatRange(0.1), default=5.0, show_default=True, help="Seconds without a new read that end a start."
)
@click.option(
    "--longest", type=click.FloatRange(1), default=120.0, show_default=True, help="Seconds that end a start in any case."
)
@click.option("--platform", help="OS/ARCHITECTURE[/VARIANT], for images with several.  [default: this machine's]")
@click.option(
    "--temporary",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="TMPDIR",
    help="Where to keep what is read and written meanwhile; not on overlayfs.",
)
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def optimize(
    source: str,
    destination: str,
    command: tuple[str, ...],
    profile_path: Path | None,
    save: Path | None,
    quiet: float,
    longest: float,
    platform: str | None,
    temporary: Path | None,
    config_path: Path | None,
    as_json: bool,
) -> None:
    """Store the PuzzleFS image SRC as DST, with what a start of it reads in a pack of its own, which a pull fetches at once.

    A container of SRC is run, with COMMAND or what the image itself says (put -- before COMMAND), until it ends, or reads
    nothing new for a while; what it read in that time is the profile. Layers keep their diff IDs, and packs are shared as
    before. SRC and DST are docker://HOST/REPOSITORY:TAG, with --profile also oci:DIR:TAG and oci-archive:FILE:TAG.
    """
    if profile_path is not None and command:
        raise InvalidError("--profile takes a start that was recorded: there is nothing to run")
    src, dst = transports.parse(source), transports.parse(destination)
    wanted = Platform.parse(platform) if platform else Platform.of_this_machine()
    config, path = configuration(config_path)
    with ended_by_signals(), contextlib.ExitStack() as stack:
        reach = stack.enter_context(Reach(config))
        opened = transports.open_source(src, reach.registries)
        stack.callback(opened.store.close)
        target = transports.open_destination(dst, reach.registries)
        stack.callback(target.store.close)
        report = stack.enter_context(reporter())
        chunks: Sequence[Digest]
        if profile_path is not None:
            chunks = _read(profile_path)
        else:
            chunks = _rehearse(src, opened, wanted, command, (quiet, longest), config, path, temporary, report)
        if save is not None:
            save.write_text(profiles.render(chunks))
        done = optimize_image(
            opened.store,
            opened.reference,
            target.store,
            target.reference,
            chunks,
            platform=wanted,
            destination_name=dst.reference.with_default_tag().canonical if isinstance(dst, DockerLocation) else None,
            temporary=temporary,
            report=lambda progress: _show(report, progress),
        )
    _print(dst, done, as_json)


def _read(path: Path) -> list[Digest]:
    try:
        return profiles.parse(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise NotFoundError(f"start profile {path} does not exist") from None


def _rehearse(
    location: Location,
    opened: Opened,
    platform: Platform,
    command: Sequence[str],
    limits: tuple[float, float],
    config: Config,
    config_path: Path | None,
    temporary: Path | None,
    report: Reporter,
) -> Sequence[Digest]:
    """Run the image and tell what its start read."""
    # imported where it is needed: a profile that is there already takes none of it
    from snapshotter.daemon.rehearsal import Limits, rehearse

    if not isinstance(location, DockerLocation):
        raise InvalidError(f"{location} cannot be run: push it to a registry, or give a recorded start with --profile")
    image = find_image(opened.store, opened.reference, platform)
    layers = []
    for layer in image.manifest.layers:
        said = parse(layer.annotations)
        if isinstance(said, MetadataLayer) and layer.media_type == MEDIA_TYPE_METADATA:
            layers.append(said)
        elif layer.media_type != MEDIA_TYPE_PACK:
            raise InvalidError(f"{image.name} has ordinary layers too and cannot be run here: convert it first")
    done = rehearse(
        layers,
        location.reference.with_default_tag().canonical,
        image.config,
        command,
        config=config,
        config_path=config_path,
        limits=Limits(*limits),
        temporary=temporary,
    )
    how = "went on running" if done.status is None else f"ended with status {done.status}"
    report.step(f"the start read {len(done.chunks)} chunks in {done.seconds:.1f} s and {how}")
    if done.status:
        wrote = done.output.strip()[-500:] or "it wrote nothing"
        raise InvalidError(f"the command ended with status {done.status}, which is no start to go by: {wrote}")
    if not done.chunks:
        raise InvalidError("the command read nothing of the image")
    return done.chunks


def _show(report: Reporter, progress: Progress) -> None:
    if progress.stage == "note":
        report.step(progress.what)
    else:
        report.advance(
            f"{'storing' if progress.stage == 'push' else 'packing'} {progress.what[:26]}", progress.done, progress.total
        )


def _print(target: Location, done: Optimized, as_json: bool) -> None:
    digest = to_text(done.manifest.digest)
    if as_json:
        figures = {"chunks": done.chunks, "unknown": done.unknown, "stored": done.stored, "stored_before": done.stored_before}
        print(json.dumps({"image": str(target), "digest": digest, **figures}))
        return
    print(f"{target}@{digest}")
    left_out = f", {done.unknown} of the profile are not in this image" if done.unknown else ""
    before = f"in the image's packs {size(done.stored_before)}"
    print(f"start profile: {done.chunks} chunks in {size(done.stored)} ({before}){left_out}")
