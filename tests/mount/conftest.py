"""One mount of one rich tree per engine, for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.engines import ENGINES, Engine, Mounted
from tests.mount.richtree import make_tree
from tests.mount.source import Builder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """mount(2), device nodes and trusted attributes need root."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.root)


@pytest.fixture(scope="module", params=sorted(ENGINES))
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine in turn."""
    return ENGINES[request.param]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree that the mounts are compared with; not to be changed."""
    root = tmp_path_factory.mktemp("rich") / "source"
    make_tree(root)
    return root


@pytest.fixture(scope="session")
def image(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`source` as an image directory."""
    builder = Builder()
    builder.add_tree(source)
    return builder.write(tmp_path_factory.mktemp("image") / "image")


@pytest.fixture(scope="module")
def mounted(engine: Engine, image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """`image`, mounted by the engine."""
    with engine.mounted(image, tmp_path_factory.mktemp("mnt") / "m") as mount:
        yield mount
