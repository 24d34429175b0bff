"""docs/security.md names tests that exist, one at least for each claim."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.support import tools

DOCUMENT = tools.ROOT / "docs/security.md"
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def _claims() -> list[tuple[str, str]]:
    """(claim, what shows it) of every row under "Claims"."""
    part = DOCUMENT.read_text().partition("## Claims")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    return [(claim, shown) for claim, shown in rows if claim not in ("claim", "---")]


@cache
def _tests(path: str) -> frozenset[str]:
    tree = ast.parse((tools.ROOT / path).read_text())
    return frozenset(
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


def test_there_are_claims() -> None:
    assert len(_claims()) > 20


@pytest.mark.parametrize(("claim", "shown"), _claims())
def test_each_claim_has_tests(claim: str, shown: str) -> None:
    named = _TEST.findall(shown)
    assert named, claim
    assert _TEST.sub("", shown).strip(", ") == "", "nothing but tests"
    for path, name in named:
        assert name in _tests(path), f"{path} has no {name}"
