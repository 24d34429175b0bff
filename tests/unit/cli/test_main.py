"""How a command ends: one line on stderr, and the status."""

from __future__ import annotations

import logging

import click
import pytest

from snapshotter.cli import exits
from snapshotter.cli.main import main, puzzlefs


def test_an_interrupted_command_says_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    @click.command()
    def interrupted() -> None:
        logging.getLogger("snapshotter.chunkstore").warning("what the packages log is not for stderr")
        raise KeyboardInterrupt

    monkeypatch.setattr(puzzlefs, "get_command", lambda context, name: interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["interrupted"])
    assert ended.value.code == exits.INTERRUPTED
    assert capsys.readouterr().err == "puzzlefs: interrupted\n"
