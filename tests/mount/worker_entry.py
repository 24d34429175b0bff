"""A mount worker whose chunks come from a directory."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])

from snapshotter.mount import worker  # noqa: E402
from tests.mount.source import DirectoryStore  # noqa: E402

sys.exit(worker.main(lambda config, _: DirectoryStore(Path(config["chunks"]))))
