"""Commands that work on images in OCI layouts, without a daemon; upstream's program has the same ones."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from snapshotter.build import mtimes
from snapshotter.build.extract import extract as extract_tree
from snapshotter.build.layout import build_layout
from snapshotter.build.progress import Progress
from snapshotter.build.upstream import build_upstream
from snapshotter.cli.background import in_background, reported_to
from snapshotter.cli.output import reporter
from snapshotter.cli.signals import ended_by_signals
from snapshotter.daemon.images import open_image
from snapshotter.errors import FailedPreconditionError, NotFoundError
from snapshotter.mount import mounting
from snapshotter.mount.failures import FailureReporter
from snapshotter.mount.libfuse import serve
from snapshotter.mount.options import parse_options
from snapshotter.mount.tree import Tree
from snapshotter.registry.layout import LayoutStore
from snapshotter.registry.platforms import Platform
from snapshotter.registry.transports import parse_layout

_log = logging.getLogger(__name__)

image_argument = click.argument("image", metavar="OCI_DIR:TAG")


def _layout(image: str) -> tuple[LayoutStore, str]:
    """The layout that ``OCI_DIR:TAG`` names, and the tag. Its path is absolute: a mount leaves the current directory."""
    location = parse_layout(image)
    return LayoutStore(location.directory.absolute()), location.tag or ""


@click.command(short_help="Build an image in an OCI layout from a directory.")
@click.argument("rootfs", type=click.Path(path_type=Path))
@image_argument
@click.option("-b", "--base-layer", metavar="TAG", help="Store the tree as a delta over this image in OCI_DIR.")
@click.option("-c", "--compression", is_flag=True, help="Compress chunks with zstd.")
@click.option("--upstream", is_flag=True, help="Build what upstream's program builds, byte for byte: no times, its cutting.")
@click.option(
    "--mtime",
    type=click.Choice(mtimes.POLICIES),
    default="keep",
    show_default=True,
    help="The files' times: as they are; none later than SOURCE_DATE_EPOCH; 1970.",
)
def build(rootfs: Path, image: str, base_layer: str | None, compression: bool, upstream: bool, mtime: str) -> None:
    """Build the image TAG in the OCI layout OCI_DIR from the directory ROOTFS.

    The layout is in upstream PuzzleFS' form, readable by its program. The same tree gives the same image, byte for byte.
    Prints the fs-verity digest of the image manifest.
    """
    retime = mtimes.policy(mtime, os.environ)
    if upstream and mtime != "keep":
        raise click.UsageError("upstream's format has no times: --upstream and --mtime exclude each other")
    store, tag = _layout(image)
    if not rootfs.is_dir():
        raise NotFoundError(f"{rootfs} is not a directory: name the tree to build the image from")
    with ended_by_signals(), reporter() as report:

        def show(now: Progress) -> None:
            if now.stage == "note":
                report.step(now.what)
            else:
                report.advance(f"reading {now.what}", now.done, now.total)

        if upstream:
            built = build_upstream(rootfs, store, tag, base=base_layer, compress=compression, report=show)
        else:
            built = build_layout(rootfs, store, tag, base=base_layer, compress=compression, retime=retime, report=show)
    print(f"puzzlefs image manifest digest: {built.verity.hex()}")


@click.command(short_help="Mount an image.")
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground.")
@click.option("-i", "--init-fifo", type=click.Path(path_type=Path), help="Write 's' to this fifo when mounted, 'f' on failure.")
@click.option("-o", "options", multiple=True, metavar="OPTION[,OPTION…]", help="Mount options, e.g. allow_other.")
@image_argument
@click.argument("mountpoint", metavar="DIR", type=click.Path(path_type=Path))
def mount(foreground: bool, init_fifo: Path | None, options: tuple[str, ...], image: str, mountpoint: Path) -> None:
    """Mount the image TAG of the OCI layout OCI_DIR on DIR, read-only.

    Root is not needed, fusermount3 is. The command returns when the mount is there. `puzzlefs umount DIR` undoes it. An image
    of several layers is shown merged.
    """
    store, tag = _layout(image)
    where = mountpoint.absolute()
    chosen = parse_options(options, f"puzzlefs:{image}")
    if not where.is_dir():
        raise NotFoundError(f"{mountpoint} is not a directory: name the directory to mount on")

    def work(ready: Callable[[], None]) -> None:
        with (
            reported_to(init_fifo) as told,
            open_image(store, tag, Platform.of_this_machine()) as opened,
        ):

            def mounted() -> None:
                told()
                ready()

            tree = Tree(opened.rootfs, as_layer=False)
            failures = FailureReporter(lambda failure: _log.error("%s", failure))
            try:
                serve(tree, opened.chunks, where, chosen, mounted, partial(failures.report, opened.name, tree))
            finally:
                failures.close()

    if foreground:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        work(lambda: None)
    else:
        sys.exit(in_background(work))


@click.command(short_help="Unmount an image.")
@click.argument("mountpoint", metavar="DIR", type=click.Path(path_type=Path))
def umount(mountpoint: Path) -> None:
    """Undo `puzzlefs mount`."""
    where = mountpoint.absolute()
    found = mounting.find(where)
    if found is None or found.fs_type != mounting.FS_TYPE:
        raise NotFoundError(f"{mountpoint} is no PuzzleFS mount")
    if os.geteuid() == 0:
        mounting.unmount(where)
        return
    done = subprocess.run(["fusermount3", "-u", "--", str(where)], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise FailedPreconditionError(f"{mountpoint}: {done.stderr.strip() or 'fusermount3 failed'}")


@click.command(short_help="Extract an image into a directory.")
@image_argument
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
def extract(image: str, directory: Path) -> None:
    """Extract the image TAG of the OCI layout OCI_DIR into the directory DIR, which is made and must be empty.

    Owners, modes, times, xattrs, devices and hard links are restored as far as the user may; links are never followed.
    """
    store, tag = _layout(image)
    with (
        ended_by_signals(),
        open_image(store, tag, Platform.of_this_machine()) as opened,
        reporter() as report,
    ):
        done = extract_tree(opened.rootfs, opened.chunks, directory)
        for line in done.problems:
            report.step(line)
        if done.problem_count > len(done.problems):
            report.step(f"and {done.problem_count - len(done.problems)} more that could not be set")
