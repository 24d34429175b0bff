"""A snapshotter on a directory of the test's own, with layers that are plain directories."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.snapshots.snapshotter import Snapshotter
from tests.support.layers import DirectoryLayers


@pytest.fixture
def layers(tmp_path: Path) -> DirectoryLayers:
    return DirectoryLayers(tmp_path / "root" / "l")


@pytest.fixture
def snapshotter(tmp_path: Path, layers: DirectoryLayers) -> Iterator[Snapshotter]:
    opened = Snapshotter(tmp_path / "root", layers)
    opened.recover()
    yield opened
    opened.close()
