"""Manual pages, made from what the commands say of themselves, so that they cannot disagree (man(7), groff_man(7))."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Sequence

import click

from snapshotter import __version__

PROJECT = "PuzzleFS snapshotter"
_NO_WRAP = 10_000
"""A width for click at which it leaves lines alone: roff fills them."""


def pages(
    group: click.Command, name: str, section: int, *, date: datetime.date, see_also: Sequence[str] = ()
) -> Iterator[tuple[str, str]]:
    """(file name, roff) of the command `group` called `name`, and of each of its subcommands as ``name-SUBCOMMAND``."""
    context = click.Context(group, info_name=name, **{**group.context_settings, "max_content_width": _NO_WRAP})
    subcommands: list[str] = []
    if isinstance(group, click.Group):
        for sub in group.list_commands(context):
            command = group.get_command(context, sub)
            assert command is not None
            subcommands.append(f"{name}-{sub}({section})")
            inner = click.Context(command, info_name=sub, parent=context, max_content_width=_NO_WRAP)
            page = command_page(command, inner, f"{name}-{sub}", section, date, [f"{name}({section})", *see_also])
            yield f"{name}-{sub}.{section}", page
    yield f"{name}.{section}", command_page(group, context, name, section, date, [*subcommands, *see_also])


def command_page(
    command: click.Command, context: click.Context, page: str, section: int, date: datetime.date, see_also: Sequence[str]
) -> str:
    """The page of one command."""
    usage = " ".join(command.collect_usage_pieces(context))
    short = command.get_short_help_str(200).rstrip(".")
    lines = [_title(page, section, date), ".SH NAME", f"{_text(page)} \\- {_text(short[:1].lower() + short[1:])}"]
    lines += [".SH SYNOPSIS", f"\\fB{_text(context.command_path)}\\fR {_text(usage)}", ".SH DESCRIPTION"]
    body, status = _split_status(command.help or "")
    lines += _paragraphs(body)
    options = [
        record
        for parameter in command.get_params(context)
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context)) is not None
    ]
    if options:
        lines.append(".SH OPTIONS")
        for names, text in options:
            lines += [".TP", f"\\fB{_text(names)}\\fR", _text(" ".join(text.split())) or "\\&"]
    if isinstance(command, click.Group):
        lines.append(".SH COMMANDS")
        for sub in command.list_commands(context):
            found = command.get_command(context, sub)
            assert found is not None
            lines += [".TP", f"\\fB{_text(sub)}\\fR", _text(found.get_short_help_str(200))]
    if status:
        lines += [".SH EXIT STATUS", *_paragraphs(status)]
    return "\n".join([*lines, *_also(see_also)]) + "\n"


def configuration_page(shipped: str, page: str, path: str, *, date: datetime.date, see_also: Sequence[str]) -> str:
    """The page of the configuration file at `path`, from the commented file that is `shipped`."""
    lines = [_title(page, 5, date), ".SH NAME", f"{_text(page)} \\- configuration of puzzlefs-snapshotter"]
    lines += [".SH SYNOPSIS", f"\\fI{_text(path)}\\fR", ".SH DESCRIPTION"]
    lines += _paragraphs(
        "A TOML file. Every key has a default; one that is not known is an error, and so is a value of another kind. Shown "
        "here with their defaults, or where there is none, an example. The daemon reads it when it starts."
    )
    comment: list[str] = []
    for line in shipped.splitlines()[1:]:
        if heading := re.match(r"#?(\[.+\])$", line):
            lines += [f".SH {_text(heading[1])}", *_paragraphs(" ".join(comment))]
            comment = []
        elif setting := re.match(r"#?([\w.]+ = .+)", line):
            lines += [".TP", f"\\fB{_text(setting[1])}\\fR", _text(" ".join(comment)) or "\\&"]
            comment = []
        elif line.startswith("#"):
            comment.append(line.lstrip("# "))
        elif not line and not any(entry.startswith(".SH [") or entry == ".TP" for entry in lines):
            lines.append(".SH SETTINGS")
    return "\n".join([*lines, ".SH FILES", f"\\fI{_text(path)}\\fR", *_also(see_also)]) + "\n"


def _title(page: str, section: int, date: datetime.date) -> str:
    return f'.TH "{_text(page).upper()}" "{section}" "{date.isoformat()}" "{PROJECT} {__version__}" "{PROJECT}"'


def _also(pages: Sequence[str]) -> list[str]:
    if not pages:
        return []
    named = [re.sub(r"(.+)(\(\d\))", lambda match: f"\\fB{_text(match[1])}\\fR{match[2]}", page) for page in pages]
    return [".SH SEE ALSO", ", ".join(named)]


def _split_status(text: str) -> tuple[str, str]:
    """The description, and what it says of the exit status, which has a section of its own in a manual page."""
    before, found, after = text.partition("Exit status: ")
    return before.rstrip(), (found + after).removeprefix("Exit status: ") if found else ""


def _paragraphs(text: str) -> list[str]:
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip().replace("\b", "")):
        if paragraph.strip():
            lines += [".PP", _text(" ".join(paragraph.split()))]
    return lines


def _text(text: str) -> str:
    """`text` so that roff prints it as it is."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace("'", "\\(aq").replace("~", "\\(ti")
    escaped = escaped.replace("^", "\\(ha").replace('"', "\\(dq")
    return f"\\&{escaped}" if escaped.startswith((".",)) else escaped
