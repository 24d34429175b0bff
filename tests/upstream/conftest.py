"""Trees as upstream's golden images have them: on ext4, whose order of xattrs is in the digests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import debian
from tests.support.filesystems import filesystem
from tests.support.processes import run

GOLDEN = Path(__file__).parents[1] / "golden" / "upstream"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Devices, owners and mounts need root."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.root)


@pytest.fixture(scope="session")
def ext4(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An ext4 of its own."""
    with filesystem("ext4", tmp_path_factory.mktemp("fs"), size=8 << 30) as mountpoint:
        yield mountpoint


@pytest.fixture(scope="session")
def golden_tree(ext4: Path) -> Callable[[str, int], Path]:
    """The tree of a golden case at one of its steps, made once."""

    def make(case: str, step: int = 0) -> Path:
        tree = ext4 / f"{case}-{step}"
        if not tree.exists():
            subprocess.run([sys.executable, GOLDEN / case / "make-tree", tree, str(step)], check=True)
        return tree

    return make


@pytest.fixture(scope="session")
def debian_root(ext4: Path) -> Path:
    """The root file system of the image that the demonstration uses."""
    image = debian.image()
    bundle = ext4 / "debian"
    run("umoci", "unpack", "--image", f"{image.layout}:{image.tag}", bundle, timeout=600)
    return bundle / "rootfs"
