"""The ``puzzlefs`` command: puts the groups of commands together and turns failures into one line and an exit status."""

from __future__ import annotations

import logging
import os
import sys
from importlib import import_module

import click

from snapshotter import __version__
from snapshotter.cli import exits
from snapshotter.errors import PuzzlefsError

_COMMANDS = {
    "build": "snapshotter.cli.local",
    "cache": "snapshotter.cli.cache",
    "convert": "snapshotter.cli.images",
    "diff": "snapshotter.cli.examine",
    "doctor": "snapshotter.cli.doctor",
    "enable-fs-verity": "snapshotter.cli.local",
    "extract": "snapshotter.cli.local",
    "images": "snapshotter.cli.listing",
    "inspect": "snapshotter.cli.examine",
    "mount": "snapshotter.cli.local",
    "optimize": "snapshotter.cli.optimize",
    "pull": "snapshotter.cli.node",
    "push": "snapshotter.cli.images",
    "status": "snapshotter.cli.status",
    "umount": "snapshotter.cli.local",
    "verify": "snapshotter.cli.examine",
}
"""Each command and its module, imported when the command is used: all of them together take most of a second."""


class _Commands(click.Group):
    """The commands of `_COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(import_module(_COMMANDS[cmd_name]), cmd_name.replace("-", "_"))
        if not isinstance(command, click.Command):
            raise TypeError(f"{_COMMANDS[cmd_name]}.{cmd_name} is no command")
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.Abort from None  # click would print an empty line of its own before it raises this


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="puzzlefs")
def puzzlefs() -> None:
    """Build, convert, mount and pull PuzzleFS images.

    Exit status: 0 done; 1 unexpected failure; 2 wrong usage or input; 3 not found; 4 cannot be reached now; 5 corrupt data;
    6 exists already; 7 not possible in this state; 8 not supported here; 130 interrupted.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit. Nothing but one line goes to stderr when it fails; PUZZLEFS_DEBUG=1 adds the traceback."""
    # Without a handler, logging prints what the packages below warn of; what matters of it is in the error's line.
    logging.getLogger("snapshotter").addHandler(logging.NullHandler())
    try:
        puzzlefs.main(args=arguments, prog_name="puzzlefs", standalone_mode=False)
        sys.exit(0)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.ClickException as error:
        fail(error, exits.one_line(click.ClickException(error.format_message())), exits.USAGE)
    except (click.Abort, KeyboardInterrupt) as error:
        fail(error, "interrupted", exits.INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (PuzzlefsError, OSError) as error:
        fail(error, exits.one_line(error), exits.status(error))
    except Exception as error:  # the one place where a defect becomes a line
        fail(error, f"unexpected failure, please report it: {type(error).__name__}: {exits.one_line(error)}", exits.UNEXPECTED)


def fail(error: BaseException, line: str, status: int) -> None:
    """Print `line` and exit with `status`."""
    if os.environ.get("PUZZLEFS_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    print(f"puzzlefs: {line}", file=sys.stderr)
    sys.exit(status)
