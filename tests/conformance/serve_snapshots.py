"""Serves the snapshots service alone, without any layer that could be mounted: for the suite of snapshotters.

python serve_snapshots.py --root DIR --address SOCKET
"""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from snapshotter.api import snapshots_pb2_grpc
from snapshotter.errors import PuzzlefsError, UnavailableError
from snapshotter.format.annotations import MetadataLayer
from snapshotter.format.digest import Digest
from snapshotter.snapshots.model import Usage
from snapshotter.snapshots.service import SnapshotsService
from snapshotter.snapshots.snapshotter import Snapshotter


class NoLayers:
    """A `LazyLayers` that refuses every layer."""

    def ensure(self, layer: MetadataLayer, image: str | None, namespace: str) -> None:
        raise UnavailableError(f"image {image} in {namespace}: no layer can be mounted here")

    def mountpoint(self, diff_id: Digest) -> Path:
        raise AssertionError("no layer was ever mounted")

    def restore(self, layers: Iterable[tuple[MetadataLayer, str | None]]) -> Mapping[Digest, PuzzlefsError]:
        return {layer.diff_id: UnavailableError("no layer can be mounted here") for layer, _ in layers}

    def release(self, diff_id: Digest) -> None:
        pass

    def usage(self, diff_id: Digest) -> Usage:
        return Usage()


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--address", required=True)
    arguments = parser.parse_args()
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    snapshotter = Snapshotter(arguments.root, NoLayers())
    snapshotter.recover()
    server = grpc.server(ThreadPoolExecutor(16))
    snapshots_pb2_grpc.add_SnapshotsServicer_to_server(SnapshotsService(snapshotter), server)
    server.add_insecure_port(f"unix:{arguments.address}")
    server.start()
    ended.wait()
    server.stop(5).wait()
    snapshotter.close()


if __name__ == "__main__":
    main()
