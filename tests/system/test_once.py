"""Ten containers start at once, on mounts that several workers serve: no byte of a chunk is moved twice."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from snapshotter.daemon.statusclient import status
from snapshotter.format.annotations import parse
from snapshotter.format.pack import PackEntry, PackIndex
from tests.support import samples
from tests.support.images import Layer, write_image
from tests.support.registry import Exchange, FakeRegistry, Fault
from tests.support.snapshotter import puzzlefs
from tests.system.conftest import Server, started

pytestmark = pytest.mark.root

STARTS = 10
VERSIONS = 5
WORKERS = 4
EVERYTHING = "cat /data/* | sha256sum; cat /bin/busybox | sha256sum"


def files(version: int) -> dict[str, bytes]:
    """What all versions have in common, files of all sizes, and one file of its own."""
    made = {f"small-{number:02}": samples.noise(2_000 + 50 * number, number) for number in range(60)}
    made |= {f"middle-{number}": samples.noise(150_000, 100 + number) for number in range(10)}
    made |= {f"large-{number}": samples.noise(3_000_000, 200 + number) for number in range(3)}
    return made | {"version": samples.noise(30_000, 300 + version)}


def publish(registry: FakeRegistry, directory: Path) -> None:
    """The versions, each converted after the one before, so that they share its chunks."""
    for version in range(VERSIONS):
        layer = Layer()
        layer.directory(b"data")
        for name, data in files(version).items():
            layer.file(f"data/{name}".encode(), data)
        image = write_image(directory / f"v{version}", "v1", [samples.base().tar(), layer.tar()])
        puzzlefs("convert", image.reference, f"docker://{registry.host}/app:{version}")


def packs(registry: FakeRegistry) -> Mapping[str, PackIndex]:
    """The index of every pack of the repository."""
    held = registry.repository("app")
    found = {}
    for _, manifest in held.manifests.values():
        for described in json.loads(manifest).get("layers", ()):
            layer = parse(described.get("annotations", {}))
            for place in getattr(layer, "packs", ()):
                name = f"sha256:{place.pack.hex()}"
                stored = held.blobs[name][place.index_offset :][: place.index_length]
                found[name] = PackIndex.parse(stored, place.index_offset)
    return found


def moved(exchanges: Iterable[Exchange]) -> Iterator[tuple[str, int, int]]:
    """The ranges of blobs that were sent: the blob, and the first byte and the one after the last."""
    for exchange in exchanges:
        _, _, blob = exchange.path.partition("/blobs/")
        if blob and exchange.method == "GET":
            assert exchange.status == 206, "a blob was fetched whole"
            for first, last in re.findall(r"(\d+)-(\d+)", exchange.range or ""):
                yield blob, int(first), int(last) + 1


def test_ten_starts_at_once_fetch_every_chunk_once(tmp_path: Path) -> None:
    with FakeRegistry() as registry:
        publish(registry, tmp_path)
        behind = cast("Server", SimpleNamespace(relay=SimpleNamespace(address=registry.host)))
        with started(behind, settings=f"[mount]\nworkers = {WORKERS}") as node:
            references = [node.pull_lazily(f"app:{version}") for version in range(VERSIONS)]
            serving = {
                mount["worker"] for told in status(node.snapshotter.socket)["layers"].values() for mount in told["mounts"]
            }
            assert len(serving) == WORKERS
            registry.inject(Fault(delay=0.05), path="/blobs/", times=1_000_000)
            before = len(registry.requests)

            def start(number: int) -> str:
                command = ("/bin/sh", "-c", EVERYTHING)
                return node.containerd.run(references[number % VERSIONS], *command, snapshotter="puzzlefs").text.split()[0]

            with ThreadPoolExecutor(STARTS) as pool:
                said = list(pool.map(start, range(STARTS)))
        for number, digest in enumerate(said):
            content = files(number % VERSIONS)
            assert digest == hashlib.sha256(b"".join(content[name] for name in sorted(content))).hexdigest()
        times: Counter[tuple[str, PackEntry]] = Counter()
        indexes = packs(registry)
        sent = 0
        for blob, first, end in moved(registry.requests[before:]):
            sent += end - first
            for entry in indexes[blob]:
                if first <= entry.offset and entry.offset + entry.stored_length <= end:
                    times[blob, entry] += 1
        twice = [(blob[:12], entry.offset, entry.stored_length, count) for (blob, entry), count in times.items() if count > 1]
        assert twice == []
        assert sent == sum(entry.stored_length for _, entry in times), "bytes that are no whole chunk"
