"""Manual pages say what the commands say."""

from __future__ import annotations

import datetime

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from package import manpages
from package.deb import manual
from snapshotter.cli.main import puzzlefs

DATE = datetime.date(2026, 1, 2)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def tool() -> None:
    """Do things."""


@tool.command(short_help="Copy a file.")
@click.argument("source", metavar="SRC")
@click.option("--mode", metavar="OCTAL", default="0644", show_default=True, help="Mode of the copy.")
def copy(source: str, mode: str) -> None:
    """Copy SRC; `it` isn't changed.

    .A line that roff would take for a request, and a back\\slash.

    Exit status: 0 copied; 1 not.
    """


def test_a_page() -> None:
    made = dict(manpages.pages(tool, "tool", 1, date=DATE, see_also=["other(5)"]))
    assert set(made) == {"tool.1", "tool-copy.1"}
    assert made["tool-copy.1"].splitlines()[1:] == [
        ".SH NAME",
        "tool\\-copy \\- copy a file",
        ".SH SYNOPSIS",
        "\\fBtool copy\\fR [OPTIONS] SRC",
        ".SH DESCRIPTION",
        ".PP",
        "Copy SRC; \\(gait\\(ga isn\\(aqt changed.",
        ".PP",
        "\\&.A line that roff would take for a request, and a back\\eslash.",
        ".SH OPTIONS",
        ".TP",
        "\\fB\\-\\-mode OCTAL\\fR",
        "Mode of the copy.  [default: 0644]".replace("  ", " "),
        ".TP",
        "\\fB\\-h, \\-\\-help\\fR",
        "Show this message and exit.",
        ".SH EXIT STATUS",
        ".PP",
        "0 copied; 1 not.",
        ".SH SEE ALSO",
        "\\fBtool\\fR(1), \\fBother\\fR(5)",
    ]
    assert "\\fBcopy\\fR\nCopy a file." in made["tool.1"]


@pytest.mark.parametrize("command", puzzlefs.list_commands(None))  # type: ignore[arg-type]
def test_every_option_is_described(command: str) -> None:
    made = dict(manual(DATE))[f"puzzlefs-{command}.1"]
    found = puzzlefs.get_command(click.Context(puzzlefs), command)
    assert found is not None
    for parameter in found.params:
        if isinstance(parameter, click.Option):
            for name in parameter.opts:
                assert name.replace("-", "\\-") in made


def test_every_setting_is_described() -> None:
    made = dict(manual(DATE))["puzzlefs-config.5"]
    for word in (".SH [cache]", "max_size = \\(dq20GiB\\(dq", "read_timeout = 60", ".SH SETTINGS", "root = "):
        assert word in made


@given(st.text(alphabet=st.characters(codec="ascii", exclude_categories=["Cc"])))
def test_text_starts_no_request(text: str) -> None:
    """A line of a page that comes from a help text is never a request, and no escape of its own remains."""
    made = manpages._text(text)
    assert not made.startswith((".", "'"))
    assert made.replace("\\e", "").replace("\\-", "").replace("\\&", "").replace("\\(", "").count("\\") == 0
