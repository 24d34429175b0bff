"""Many clients at once on few keys, over the daemon's socket; then everything that must agree agrees."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from snapshotter.api import diff_pb2, diff_pb2_grpc, snapshots_pb2, snapshots_pb2_grpc, types_pb2
from snapshotter.daemon import invariants
from snapshotter.format.annotations import parse
from snapshotter.format.digest import Digest, chain_id, to_text
from snapshotter.snapshots.lazy import diff_id_of
from snapshotter.snapshots.model import REF_LABEL
from tests.system.conftest import Node, Published, Server

pytestmark = pytest.mark.root

CLIENTS = 8
SECONDS = float(os.environ.get("STRESS_SECONDS", "8"))
SEED = int(os.environ.get("STRESS_SEED", "1"))
KEYS = [f"ns{number % 2}/{number}/key" for number in range(6)]
NAMES = [f"ns{number % 2}/{number}/name" for number in range(6)]
EXPECTED = {
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
}
"""Answers that a client may get because another one was there before it."""


class Client:
    """One client, which does what comes to its mind."""

    def __init__(self, channel: grpc.Channel, layers: list[dict[str, Any]], seed: str) -> None:
        self.snapshots = snapshots_pb2_grpc.SnapshotsStub(channel)
        self._differ = diff_pb2_grpc.DiffStub(channel)
        self._layers = layers
        self._random = random.Random(seed)
        self.answers: Counter[str] = Counter()
        self.unexpected: list[str] = []

    def work(self, until: float) -> None:
        """Until the time is over."""
        calls: list[Callable[[], object]] = [
            self.prepare,
            self.prepare,
            self.pull,
            self.pull,
            self.apply,
            self.view,
            self.commit,
            self.commit,
            self.remove,
            self.remove,
            self.remove_any,
            self.look,
            self.cleanup,
        ]
        while time.monotonic() < until:
            call = self._random.choice(calls)
            try:
                call()
                answer = "OK"
            except grpc.RpcError as error:
                answer = error.code().name
                if error.code() not in EXPECTED:
                    self.unexpected.append(f"{call.__name__}: {answer}: {error.details()}")
            self.answers[f"{call.__name__} {answer}"] += 1

    def _key(self) -> str:
        return self._random.choice(KEYS)

    def _committed(self) -> str:
        """Something to stand on, or nothing."""
        there = [
            info.name
            for page in self.snapshots.List(snapshots_pb2.ListSnapshotsRequest(filters=["kind==committed"]))
            for info in page.info
        ]
        return str(self._random.choice(["", *there]))

    def prepare(self) -> None:
        request = snapshots_pb2.PrepareSnapshotRequest(key=self._key(), parent=self._committed())
        assert self.snapshots.Prepare(request).mounts

    def view(self) -> None:
        self.snapshots.View(snapshots_pb2.ViewSnapshotRequest(key=self._key(), parent=self._committed()))

    def commit(self) -> None:
        self.snapshots.Commit(snapshots_pb2.CommitSnapshotRequest(key=self._key(), name=self._random.choice(NAMES)))

    def remove(self) -> None:
        self.snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(key=self._random.choice([*KEYS, *NAMES])))

    def remove_any(self) -> None:
        if name := self._committed():
            self.snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(key=name))

    def pull(self) -> None:
        """An image's layers one on another, as containerd's unpacker asks for them."""
        parent, chain, depth = "", None, self._random.randint(1, len(self._layers))
        for layer in self._layers[:depth]:
            known = parse(layer["annotations"])
            assert known is not None
            chain = chain_id(chain, diff_id_of(known))
            parent = self._unpack(parent, chain, layer["annotations"])

    def _unpack(self, parent: str, chain: Digest, annotations: dict[str, str]) -> str:
        labels = {**annotations, REF_LABEL: to_text(chain)}
        key = f"ns{self._random.randint(0, 1)}/1/extract-{self._random.random()} {to_text(chain)}"
        with contextlib.suppress(grpc.RpcError):
            self.snapshots.Prepare(snapshots_pb2.PrepareSnapshotRequest(key=key, parent=parent, labels=labels))
        wanted = f'labels."{REF_LABEL}"=={to_text(chain)},parent=="{parent}"'
        for page in self.snapshots.List(snapshots_pb2.ListSnapshotsRequest(filters=[wanted])):
            for info in page.info:
                return str(info.name)
        return ""

    def apply(self) -> None:
        """One layer unpacked without labels."""
        layer, key = self._layers[0], self._key()
        mounts = self.snapshots.Prepare(snapshots_pb2.PrepareSnapshotRequest(key=key)).mounts
        descriptor = types_pb2.Descriptor(
            media_type=layer["mediaType"], digest=layer["digest"], size=layer["size"], annotations=layer["annotations"]
        )
        self._differ.Apply(diff_pb2.ApplyRequest(diff=descriptor, mounts=mounts))
        self.snapshots.Commit(snapshots_pb2.CommitSnapshotRequest(key=key, name=self._random.choice(NAMES)))

    def look(self) -> None:
        self.snapshots.Mounts(snapshots_pb2.MountsRequest(key=self._key()))
        self.snapshots.Usage(snapshots_pb2.UsageRequest(key=self._key()))
        self.snapshots.Stat(snapshots_pb2.StatSnapshotRequest(key=self._random.choice(NAMES)))

    def cleanup(self) -> None:
        self.snapshots.Cleanup(snapshots_pb2.CleanupRequest())


def _remove_all(snapshots: Any) -> None:
    """Children first, until nothing is left."""
    while names := [info.name for page in snapshots.List(snapshots_pb2.ListSnapshotsRequest()) for info in page.info]:
        for name in reversed(names):
            with contextlib.suppress(grpc.RpcError):  # something stands on it yet
                snapshots.Remove(snapshots_pb2.RemoveSnapshotRequest(key=name))
    snapshots.Cleanup(snapshots_pb2.CleanupRequest())


def test_many_clients_on_few_keys(node: Node, server: Server, plain: Published) -> None:
    repository, _, tag = plain.lazy.rpartition(":")
    layers: list[dict[str, Any]] = server.registry.manifest(repository, tag)["layers"]
    root = node.snapshotter.root
    with grpc.insecure_channel(f"unix:{node.snapshotter.socket}") as channel:
        clients = [Client(channel, layers, f"{SEED}-{number}") for number in range(CLIENTS)]
        until = time.monotonic() + SECONDS
        threads = [threading.Thread(target=client.work, args=(until,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        answers = sum((client.answers for client in clients), Counter())
        assert [line for client in clients for line in client.unexpected] == []
        for call in ("prepare", "view", "commit", "remove", "apply", "pull", "cleanup"):
            assert answers[f"{call} OK"] > 0, f"{call} never worked: {answers}"
        clients[0].cleanup()
        assert invariants.settled(root) == invariants.Report((), ()), answers
        _remove_all(clients[0].snapshots)
        assert node.left() == []
        assert invariants.settled(root) == invariants.Report((), ())
