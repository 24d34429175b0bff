"""Commands that work on images in OCI layouts, without a daemon; upstream's program has the same ones."""

from __future__ import annotations

import contextlib
import logging
import os
import re
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
from snapshotter.build.sealing import seal_image
from snapshotter.build.upstream import build_upstream
from snapshotter.cli.background import in_background, reported_to
from snapshotter.cli.output import reporter, size
from snapshotter.cli.signals import ended_by_signals
from snapshotter.daemon.images import open_image
from snapshotter.errors import FailedPreconditionError, NotFoundError
from snapshotter.format import fsverity
from snapshotter.mount import mounting, overlay
from snapshotter.mount.failures import FailureReporter
from snapshotter.mount.libfuse import serve
from snapshotter.mount.options import parse_options
from snapshotter.mount.tree import Tree
from snapshotter.registry.layout import LayoutStore
from snapshotter.registry.platforms import Platform
from snapshotter.registry.transports import parse_layout

_log = logging.getLogger(__name__)

image_argument = click.argument("image", metavar="OCI_DIR:TAG")


def _layout(image: str, *, undo: bool = False) -> tuple[LayoutStore, str]:
    """The layout that ``OCI_DIR:TAG`` names, and the tag. Its path is absolute: a mount leaves the current directory."""
    location = parse_layout(image)
    return LayoutStore(location.directory.absolute(), undo=undo), location.tag or ""


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
    store, tag = _layout(image, undo=True)
    if not rootfs.is_dir():
        raise NotFoundError(f"{rootfs} is not a directory: name the tree to build the image from")
    with ended_by_signals(), contextlib.closing(store), reporter() as report:

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


def _hex_digest(_: click.Context, __: click.Parameter, text: str | None) -> bytes | None:
    """An fs-verity digest as upstream's program takes it: 64 hexadecimal digits of either case."""
    if text is None:
        return None
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise click.BadParameter(
            f"{text[:100]!r} is not an fs-verity digest: 64 hexadecimal digits, as puzzlefs build prints them"
        )
    return bytes.fromhex(text)


@click.command(short_help="Mount an image.")
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground.")
@click.option(
    "-i",
    "--init-fifo",
    "--init-pipe",
    type=click.Path(path_type=Path),
    help="Write 's' to this fifo when mounted, 'f' on failure.",
)
@click.option("-o", "options", multiple=True, metavar="OPTION[,OPTION…]", help="Mount options, e.g. allow_other.")
@click.option(
    "-d", "--digest", metavar="HEX", callback=_hex_digest, help="The manifest's fs-verity digest; refuse another image."
)
@click.option("-w", "--writable", is_flag=True, help="Let DIR be written: changes go to DIR/upper. Needs root.")
@click.option(
    "-p", "--persist", type=click.Path(path_type=Path), metavar="UPPER", help="Keep the changes in this directory; implies -w."
)
@image_argument
@click.argument("mountpoint", metavar="DIR", type=click.Path(path_type=Path))
def mount(
    foreground: bool,
    init_fifo: Path | None,
    options: tuple[str, ...],
    digest: bytes | None,
    writable: bool,
    persist: Path | None,
    image: str,
    mountpoint: Path,
) -> None:
    """Mount the image TAG of the OCI layout OCI_DIR on DIR, read-only.

    Root is not needed, fusermount3 is. The command returns when the mount is there. `puzzlefs umount DIR` undoes it. An image
    of several layers is shown merged.

    With --digest the image is the one that was built, or is not mounted: the manifest is checked against HEX, the metadata
    against the manifest, and every chunk against the metadata as it is read. `puzzlefs enable-fs-verity` has the kernel check
    the files too.

    With --writable, DIR shows an overlay over the image. The changes stay in DIR/upper, or in UPPER, for the next mount.
    """
    with reported_to(init_fifo) as told:
        store, tag = _layout(image)
        where = mountpoint.absolute()
        chosen = parse_options(options, f"puzzlefs:{image}")
        if not where.is_dir():
            raise NotFoundError(f"{mountpoint} is not a directory: name the directory to mount on")
        stacked = writable or persist is not None
        if stacked and foreground:
            raise click.UsageError("a writable mount has no process that could stay in the foreground: leave out -f")
        if stacked:
            overlay.prepare(where, persist)
        lower = overlay.lower(where) if stacked else where

        def work(ready: Callable[[], None]) -> None:
            with open_image(store, tag, Platform.of_this_machine(), digest) as opened:
                tree = Tree(opened.rootfs, as_layer=False)
                failures = FailureReporter(lambda failure: _log.error("%s", failure))
                try:
                    serve(tree, opened.chunks, lower, chosen, ready, partial(failures.report, opened.name, tree))
                finally:
                    failures.close()

        if foreground:
            logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
            work(told)
            return
        status = in_background(work)
        if status:
            sys.exit(status)
        if stacked:
            try:
                overlay.stack(where, persist)
            except BaseException:
                mounting.unmount(lower)
                raise
        told()


@click.command(short_help="Unmount an image.")
@click.argument("mountpoint", metavar="DIR", type=click.Path(path_type=Path))
def umount(mountpoint: Path) -> None:
    """Undo `puzzlefs mount`. The changes of a writable mount are kept."""
    where = mountpoint.absolute()
    if overlay.is_stacked(where):
        overlay.unstack(where)
        return
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


@click.command(short_help="Have the kernel's fs-verity protect an image.")
@image_argument
@click.argument("digest", metavar="HEX", callback=_hex_digest)
def enable_fs_verity(image: str, digest: bytes) -> None:
    """Seal the files of the image TAG in the OCI layout OCI_DIR, whose manifest has the fs-verity digest HEX.

    The kernel then checks every byte that is read of them, and lets nobody write to them. Each file is compared with what the
    image says of it before it is sealed. HEX is what `puzzlefs build` printed.
    """
    store, tag = _layout(image)
    with ended_by_signals(), reporter() as report:
        done = seal_image(
            store,
            tag,
            digest,
            fsverity,
            Platform.of_this_machine(),
            lambda now: report.advance(f"sealing {now.what}", now.done, now.total),
        )
    if done.unrecorded:
        print(f"note: {done.unrecorded} chunks have another fs-verity digest than the image records; they are right by name")
    print(f"{done.files} files ({size(done.bytes)}) are sealed")
