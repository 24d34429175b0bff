from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib import font_manager
from rich.console import Console

from bench.report import Bars, Section, Table, publish, replaced

TABLE = Table("Walk", ("engine", "cold", "warm"), [("a|b", "1.0 s", "0.1 s"), ("c", "2.0 s", "0.2 s")])
PLOT = Bars("Walks", "times", ("cold", "warm"), {"a": [1.0, 2.0], "c": [None, 3.0]}, reference=1.0, logarithmic=True)


@pytest.fixture(autouse=True)
def _fonts_are_closed() -> Iterator[None]:
    """matplotlib keeps the files of its fonts open."""
    yield
    font_manager._get_font.cache_clear()


def section(name: str, plot: Bars | None = None) -> Section:
    return Section(name, f"Title of {name}", "How it was done.", [TABLE], plot)


def publish_quietly(what: Section, docs: Path) -> str:
    output = io.StringIO()
    publish(what, docs, Console(file=output, width=100))
    return output.getvalue()


def test_a_section_has_method_table_and_picture(tmp_path: Path) -> None:
    printed = publish_quietly(section("mount", PLOT), tmp_path)
    document = (tmp_path / "benchmarks.md").read_text()
    assert document.startswith("# Benchmarks\n")
    assert "## Title of mount" in document
    assert "`make bench-mount`" in document
    assert "How it was done." in document
    assert "| a\\|b | 1.0 s | 0.1 s |" in document
    assert "![Walks](benchmarks-mount.png)" in document
    assert (tmp_path / "benchmarks-mount.png").read_bytes().startswith(b"\x89PNG")
    assert "2.0 s" in printed


def test_a_picture_without_its_figures_changing_stays_the_same(tmp_path: Path) -> None:
    publish_quietly(section("mount", PLOT), tmp_path)
    first = (tmp_path / "benchmarks-mount.png").read_bytes()
    publish_quietly(section("mount", PLOT), tmp_path)
    assert (tmp_path / "benchmarks-mount.png").read_bytes() == first


def test_a_section_replaces_itself_and_nothing_else(tmp_path: Path) -> None:
    for name in ("mount", "pull", "dedup"):
        publish_quietly(section(name), tmp_path)
    before = (tmp_path / "benchmarks.md").read_text()
    publish_quietly(Section("pull", "Another", "New method.", []), tmp_path)
    after = (tmp_path / "benchmarks.md").read_text()
    assert "Title of pull" not in after
    assert after.index("Title of mount") < after.index("## Another") < after.index("Title of dedup")
    publish_quietly(section("pull"), tmp_path)
    assert (tmp_path / "benchmarks.md").read_text() == before


@pytest.mark.parametrize("text", [r"a \1 and \g<0>", "<!-- end other -->"])
def test_text_is_taken_as_it_is(text: str) -> None:
    once = replaced("head\n", "x", text)
    assert replaced(once, "x", text) == once
    assert text in once
