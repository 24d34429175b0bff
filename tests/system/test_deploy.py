"""What ``deploy/`` ships for the daemon. containerd's configurations there are those of `tests.support.containerd`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from snapshotter.daemon import config
from tests.support import tools

DEPLOY = tools.ROOT / "deploy"


def test_default_configuration_is_the_default(tmp_path: Path) -> None:
    """The shipped configuration of the daemon changes nothing, and each line in it that is commented out is taken."""
    text = (DEPLOY / "puzzlefs/config.toml").read_text()
    assert config.parse(tomllib.loads(text)) == config.Config()
    every = re.sub(r"^#(?=\w+ = |\[)", "", text, flags=re.MULTILINE)
    read = config.parse(tomllib.loads(every))
    assert read.root == config.Config().root
    assert read.cache_max_bytes is not None
    assert list(read.registries) == ["registry.example:5000"]
