"""``puzzlefs cache``: what is in a node's chunk cache, by image; and what need not be there."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from snapshotter.chunkstore.eviction import Evictor
from snapshotter.chunkstore.reserve import Cap
from snapshotter.chunkstore.scan import scan
from snapshotter.chunkstore.stats import Count, Stats
from snapshotter.cli.output import reporter, size
from snapshotter.cli.registries import config_option, configuration
from snapshotter.cli.signals import ended_by_signals
from snapshotter.daemon import settings
from snapshotter.daemon.config import Config
from snapshotter.daemon.holdings import holdings, remove
from snapshotter.errors import CorruptError, InvalidError
from snapshotter.format.printable import printable

_root_option = click.option(
    "--root", type=click.Path(path_type=Path, file_okay=False), help="The snapshotter's root.  [default: the configuration's]"
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.group(short_help="The node's chunk cache: ls, prune, verify.")
def cache() -> None:
    """Look at the node's chunk cache, make it smaller, check it. The daemon may run meanwhile."""


@cache.command("ls")
@_root_option
@config_option
@_json_option
def list_images(root: Path | None, config_path: Path | None, as_json: bool) -> None:
    """List the images that the cache has something of: how much is here, and how much of that other images share."""
    config, _ = configuration(config_path)
    found = holdings(_root(root, config))
    unused = sum(found.unused.values())
    if as_json:
        images = [{**asdict(image), "own": image.own} for image in found.images]
        told = {"images": images, "disk": found.disk, "chunks": found.chunks, "unused": unused, "recent": found.recent}
        print(json.dumps(told))
        return
    width = max([len(image.image) for image in found.images] + [5])
    print(f"{'IMAGE':<{width}}  {'LOCAL':>6}  {'ON DISK':>9}  {'SHARED':>9}  {'OWN':>9}")
    for image in found.images:
        share = f"{100 * image.local / image.chunks:.0f} %" if image.chunks else "100 %"
        sizes = "  ".join(f"{size(value):>9}" for value in (image.disk, image.shared, image.own))
        print(f"{printable(image.image):<{width}}  {share:>6}  {sizes}")
    print(f"{found.chunks} chunks, {size(found.disk)} on disk; {size(unused)} are of no image on this node")
    cap = config.cache_cap
    kept = (
        "" if cap is None else f"; {size(cap.reserved_bytes)} of the {size(cap.max_bytes)} that it may take are kept for such"
    )
    print(f"{size(found.recent)} were read by containers within a day{kept}")


@cache.command()
@click.option("--to", "target", metavar="SIZE", help='Also evict what was used longest ago, down to this size ("10GiB", "0").')
@_root_option
@config_option
@_json_option
def prune(target: str | None, root: Path | None, config_path: Path | None, as_json: bool) -> None:
    """Remove chunks that no image on this node has any more.

    With --to, what containers have read within a day goes last, as far as it fits into the reserve of the configuration. What a
    running container needs of what is removed is fetched again when it is read.
    """
    config, _ = configuration(config_path)
    place = _root(root, config)
    wanted = None if target is None else settings.size("--to", target) or 0
    with ended_by_signals():
        freed = remove(place, holdings(place).unused)
        if wanted is not None:
            stats = Stats()
            Evictor(place / "chunks", Cap(wanted, config.cache_reserve, low_water=1.0), stats).sweep()
            freed += stats.total(Count.EVICTED_BYTES)
    if as_json:
        print(json.dumps({"freed": freed}))
    else:
        print(f"{size(freed)} freed")


@cache.command()
@_root_option
@config_option
@_json_option
def verify(root: Path | None, config_path: Path | None, as_json: bool) -> None:
    """Check every chunk, index and layer against its name; what is wrong is removed, and fetched again when it is read."""
    place = _root(root, configuration(config_path)[0])
    with ended_by_signals(), reporter() as report:
        found = scan(place, drop=True, progress=lambda done, total: report.advance("checking files", done, total))
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        for problem in found.problems:
            print(printable(problem))
        print(f"{found.chunks} chunks, {found.indexes} indexes, {found.metadata} layers, {size(found.bytes)} checked")
    if found.errors:
        raise CorruptError(f"{found.errors} files in {place} are damaged; {found.dropped} were removed")


def _root(root: Path | None, config: Config) -> Path:
    found = root or config.root
    if not found.is_dir():
        raise InvalidError(f"{found} is no directory: name the snapshotter's root with --root")
    return found
