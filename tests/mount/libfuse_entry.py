"""Serves an image directory by the pyfuse3 engine: IMAGE MOUNTPOINT as_layer|whole OPTIONS. Says on stdout what happens."""

import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])

from snapshotter.format.rootfs import Rootfs  # noqa: E402
from snapshotter.mount.libfuse import serve  # noqa: E402
from snapshotter.mount.options import parse_options  # noqa: E402
from snapshotter.mount.tree import Tree  # noqa: E402
from tests.mount.source import DirectoryStore  # noqa: E402

image, mountpoint, presentation, options = sys.argv[1:]
tree = Tree(Rootfs.open(Path(image, "metadata").read_bytes()), as_layer=presentation == "as_layer")
serve(
    tree,
    DirectoryStore(Path(image, "chunks")),
    Path(mountpoint),
    parse_options([options], "test image"),
    lambda: print("ready", flush=True),
    lambda failure: print(json.dumps({"path": tree.path(failure.ino).decode(), "error": str(failure.error)}), flush=True),
)
