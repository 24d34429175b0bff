"""Exit statuses are complete, and an error is one line whatever is in it."""

from __future__ import annotations

import pytest

from snapshotter import errors
from snapshotter.cli import exits

CATEGORIES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.PuzzlefsError)]


def test_every_category_has_a_status_of_its_own() -> None:
    statuses = {kind: exits.status(kind("x")) for kind in CATEGORIES if kind is not errors.PuzzlefsError}
    assert len(set(statuses.values())) == len(statuses)
    assert exits.UNEXPECTED not in statuses.values()
    assert 0 not in statuses.values()


def test_the_documented_statuses() -> None:
    for kind, status in (
        (errors.InvalidError, 2),
        (errors.NotFoundError, 3),
        (errors.UnavailableError, 4),
        (errors.CorruptError, 5),
        (errors.AlreadyExistsError, 6),
        (errors.FailedPreconditionError, 7),
        (errors.UnsupportedError, 8),
        (KeyboardInterrupt, 130),
        (ValueError, 1),
    ):
        assert exits.status(kind("x")) == status


@pytest.mark.parametrize("text", ["a\nb", "a\x1b[31mb", "a\0b", "a\u2028b"])
def test_control_characters_do_not_reach_the_terminal(text: str) -> None:
    assert exits.one_line(errors.InvalidError(text)).isprintable()


def test_an_os_error_names_its_file() -> None:
    assert exits.one_line(FileNotFoundError(2, "No such file or directory", "/x")) == "/x: No such file or directory"
