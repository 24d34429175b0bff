"""``puzzlefs doctor``: what is right and wrong with this node, and what to type."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from snapshotter.cli.sockets import containerd_option
from snapshotter.daemon.addresses import CONFIGURATION
from snapshotter.doctor.collect import Request, examine
from snapshotter.doctor.finding import Finding, Level, worst
from snapshotter.format.printable import printable
from snapshotter.registry import reference as references

FAILED = 7
"""Exit status if anything fails: the state of the system does not allow it (`exits`)."""

_WIDTH = 29
"""Of the column with the checks' names; images have longer ones."""
_STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


@click.command(short_help="Check this node: kernel, daemon, containerd, images.")
@click.argument("ref", required=False)
@containerd_option
@click.option(
    "--containerd-config",
    type=click.Path(dir_okay=False),
    help="containerd's configuration.  [default: that of the running one]",
)
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"The daemon's configuration.  [default: {CONFIGURATION}, if it exists]",
)
@click.option("--images/--no-images", default=True, help="Look at every image on the node.", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(
    ref: str | None, address: Path, containerd_config: str | None, config_path: Path | None, images: bool, as_json: bool
) -> None:
    """Check the kernel, the daemon, containerd and every image of this node; with REF, that image's registry too.

    One line says what is right or wrong, an indented one behind it what to type. Exit status: 0 if nothing failed (there may
    be warnings), 7 if something did.
    """
    request = Request(
        config_path=config_path or CONFIGURATION,
        config_required=config_path is not None,
        containerd_address=address,
        containerd_config=containerd_config,
        reference=references.parse(ref).with_default_tag() if ref is not None else None,
        look_at_images=images,
    )
    if as_json:
        findings = list(examine(request))
        print(json.dumps({"worst": worst(findings), "findings": [finding.to_json() for finding in findings]}))
    else:
        findings = _print(examine(request))
    if worst(findings) is Level.FAIL:
        sys.exit(FAILED)


def _print(found: Iterable[Finding]) -> list[Finding]:
    """Print what is found as it is found; answers all of it."""
    console = Console(highlight=False, soft_wrap=True)
    findings = []
    for finding in found:
        findings.append(finding)
        line = Text.assemble(
            (f"{finding.level:4}", _STYLES[finding.level]), " ", (f"{printable(finding.check):{_WIDTH}}", "cyan")
        )
        console.print(line.append(f"  {printable(finding.text)}"))
        if finding.advice:
            console.print(Text(f"     → {printable(finding.advice)}", style="dim" if finding.level is Level.OK else ""))
    console.print(", ".join(f"{sum(finding.level is level for finding in findings)} {level}" for level in Level))
    return findings
