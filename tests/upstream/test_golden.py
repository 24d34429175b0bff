"""`build --upstream` against the images that upstream's program wrote: the same bytes, so the same digests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapshotter.build.layout import BuiltLayout
from snapshotter.build.upstream import build_upstream
from snapshotter.format.digest import to_text
from snapshotter.registry.layout import LayoutStore
from tests.upstream.conftest import GOLDEN

CASES = sorted(path.parent.name for path in GOLDEN.glob("*/expect.json"))


def files(root: Path) -> dict[str, bytes]:
    """Every file of a layout, by its path."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", CASES)
def test_the_same_layout_byte_for_byte(case: str, golden_tree: Callable[[str, int], Path], tmp_path: Path) -> None:
    """Every case, its steps one over the other, with the options that upstream's program was given."""
    expected: dict[str, Any] = json.loads((GOLDEN / case / "expect.json").read_text())["images"]
    assert expected
    layout = tmp_path / "image"
    for step, (tag, image) in enumerate(expected.items()):
        words = image["command"].split()
        built: BuiltLayout = build_upstream(
            golden_tree(case, step),
            LayoutStore(layout, durable=False),
            tag,
            base=words[words.index("-b") + 1] if "-b" in words else None,
            compress="-c" in words,
        )
        assert built.verity.hex() == image["printed_manifest_digest"]
        assert to_text(built.manifest.digest) == image["manifest"]
    if (GOLDEN / case / "image").exists():
        assert files(layout) == files(GOLDEN / case / "image")
