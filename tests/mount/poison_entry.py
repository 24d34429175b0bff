"""A mount worker whose chunks come from the directory that the layer's source names as its image, and may kill it."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])

from snapshotter.chunkstore.base import ChunkRef  # noqa: E402
from snapshotter.mount import worker  # noqa: E402
from tests.mount.source import DirectoryStore  # noqa: E402


class Poison(DirectoryStore):
    """Where there is a file ``poison`` beside the chunks, reading kills."""

    def get(self, wanted: Sequence[ChunkRef]) -> list[bytes]:
        if (Path(self.name) / "poison").exists():
            os.abort()
        return super().get(wanted)


if __name__ == "__main__":
    sys.exit(worker.main(lambda source, verity_of: Poison(Path(source["images"][0]))))
