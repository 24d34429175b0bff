"""Writes what was measured into docs/benchmarks.md: a section a benchmark, with method, tables and a plot.

A benchmark replaces its own section and leaves the others as they are, so that each can be run alone. Every section says
by itself when and on what it was measured.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from rich.console import Console
from rich.table import Table as ConsoleTable

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

_FILE = "benchmarks.md"
_HEAD = """# Benchmarks

Each section is written by the `make bench-…` that it names, `make bench` runs all of them. What counts are the ratios: things
that stand in one table took turns in one run on one machine.
"""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings; the first column names the row, the others are numbers as they shall be read ("1.31 s")."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """As a table of GitHub's Markdown."""
        lines = [self.headings, ["---", *["---:"] * (len(self.headings) - 1)], *self.rows]
        cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
        return f"**{self.title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"

    def show(self, console: Console) -> None:
        """On a terminal."""
        table = ConsoleTable(title=self.title)
        for number, heading in enumerate(self.headings):
            table.add_column(heading, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)


class Plot(Protocol):
    """A picture of a section's figures."""

    @property
    def title(self) -> str:
        """What stands above it."""
        ...

    def draw(self, axes: Axes) -> None:
        """Draw into empty axes; title and legend are the report's."""
        ...


@dataclass(frozen=True, slots=True)
class Bars:
    """Groups of bars: for each of `groups` one bar of every series. None where there is nothing to show.

    `reference` draws a line across, at what everything is compared with; `logarithmic` scales for ratios that differ much.
    """

    title: str
    unit: str
    groups: Sequence[str]
    series: Mapping[str, Sequence[float | None]]
    reference: float | None = None
    logarithmic: bool = False

    def draw(self, axes: Axes) -> None:
        """See `Plot`."""
        width = 0.8 / len(self.series)
        for number, (name, values) in enumerate(self.series.items()):
            places = [group + (number - (len(self.series) - 1) / 2) * width for group in range(len(self.groups))]
            shown = [(place, value) for place, value in zip(places, values, strict=True) if value is not None]
            bars = axes.bar([place for place, _ in shown], [value for _, value in shown], width, label=name)
            axes.bar_label(bars, fmt="{:.3g}", fontsize=7)
        if self.reference is not None:
            axes.axhline(self.reference, color="grey", linewidth=0.8)
        if self.logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(range(len(self.groups)), self.groups)
        axes.set_ylabel(self.unit)


@dataclass(frozen=True, slots=True)
class Section:
    """One benchmark's part of the document.

    `name` is that of its make target (``mount`` for ``make bench-mount``) and of its picture; `method` is Markdown: on what,
    how, how often, what was cold.
    """

    name: str
    title: str
    method: str
    tables: Sequence[Table]
    plot: Plot | None = None


def publish(section: Section, docs: Path = DOCS, console: Console | None = None) -> None:
    """Print the tables of `section`, and put it into docs/benchmarks.md in place of what stood there under its name."""
    console = console or Console(highlight=False)
    for table in section.tables:
        table.show(console)
    docs.mkdir(exist_ok=True)
    if section.plot is not None:
        _picture(section.plot, docs / f"benchmarks-{section.name}.png")
    file = docs / _FILE
    before = file.read_text() if file.exists() else _HEAD
    file.write_text(replaced(before, section.name, _text(section)))
    console.print(f"written to {os.path.relpath(file)}")


def replaced(document: str, name: str, text: str) -> str:
    """`document` with the section `name` saying `text`: where it stood, or at the end."""
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->\n"
    section = f"{begin}{text.rstrip()}\n{end}"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if pattern.search(document):
        return pattern.sub(lambda _: section, document)
    return f"{document.rstrip()}\n\n{section}"


def machine() -> str:
    """When and on what this runs, in one line."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, check=False, capture_output=True, text=True)
    return ", ".join(
        [
            f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
            f"commit {commit.stdout.strip() or 'unknown'}",
            f"{os.cpu_count()} cores ({cpu[1] if cpu else platform.machine()})",
            f"{memory:.0f} GiB",
            f"Linux {platform.release().split('-')[0]}",
            f"Python {platform.python_version()}",
        ]
    )


def _text(section: Section) -> str:
    parts = [f"## {section.title}", f"`make bench-{section.name}`. Measured: {machine()}.", section.method.strip()]
    parts += [table.markdown().strip() for table in section.tables]
    if section.plot is not None:
        parts.append(f"![{section.plot.title}](benchmarks-{section.name}.png)")
    return "\n\n".join(parts)


def _picture(plot: Plot, path: Path) -> None:
    # Figure alone has no window system behind it, and no version in the file keeps it the same for the same figures
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(9, 4.5), dpi=110, layout="constrained")
        axes = figure.add_subplot()
        plot.draw(axes)
        axes.set_title(plot.title)
        axes.legend(fontsize=8)
        figure.savefig(path, metadata={"Software": None})
