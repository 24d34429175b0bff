"""Start profiles on real parts: recorded, packed, fetched at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.processes import CommandError
from tests.support.snapshotter import puzzlefs
from tests.system.conftest import Node, Published, Server

pytestmark = pytest.mark.root

SCRIPT = "cat /data/first >/dev/null; echo done"


def test_a_start_is_recorded_and_then_fetched_at_once(node: Node, server: Server, plain: Published, tmp_path: Path) -> None:
    """The optimized image's start needs nothing of the other packs; its layers are the same ones."""
    saved = tmp_path / "start.json"
    fast = plain.lazy.rpartition(":")[0] + ":fast"
    command = ("/bin/sh", "-c", SCRIPT)
    puzzlefs(
        "optimize", f"docker://{node.reference(plain.lazy)}", f"docker://{node.reference(fast)}",
        "--save", saved, "--temporary", tmp_path, "--config", node.snapshotter.config, "--", *command,
    )  # fmt: skip
    assert len(json.loads(saved.read_text())["chunks"]) > 1
    before, after = server.layers(plain.lazy), server.layers(fast)
    metadata = [layer for layer in before if "metadata" in str(layer["mediaType"])]
    assert len(after) == len(before) + 1
    assert _diff_ids(server, plain.lazy)[: len(metadata)] == _diff_ids(server, fast)[: len(metadata)]
    reference = node.pull_lazily(fast)
    assert node.containerd.run(reference, *command, snapshotter="puzzlefs").text == "done\n"
    size = int(str(after[-1]["size"]))
    fetched = node.relay.received
    assert node.containerd.run(reference, *command, snapshotter="puzzlefs").text == "done\n"
    assert node.relay.received == fetched
    whole = sum(int(str(layer["size"])) for layer in before)
    assert size < whole


def test_a_recorded_start_is_used_without_running_anything(node: Node, plain: Published, tmp_path: Path) -> None:
    """`--profile` takes what `--save` wrote."""
    saved = tmp_path / "start.json"
    places = [f"docker://{node.reference(plain.lazy.rpartition(':')[0])}:{tag}" for tag in ("puzzlefs", "one", "two")]
    options = ("--temporary", tmp_path, "--config", node.snapshotter.config)
    puzzlefs("optimize", *places[:2], "--save", saved, *options, "--", "/bin/sh", "-c", SCRIPT)
    told = json.loads(puzzlefs("optimize", places[0], places[2], "--profile", saved, "--json", *options).stdout)
    assert told["chunks"] == len(json.loads(saved.read_text())["chunks"])
    assert told["unknown"] == 0


def test_a_command_that_fails_makes_no_profile(node: Node, plain: Published, tmp_path: Path) -> None:
    """What it said is in the message; nothing is stored."""
    place = f"docker://{node.reference(plain.lazy)}"
    with pytest.raises(CommandError, match=r"status 3.*some reason"):
        puzzlefs(
            "optimize", place, place + "-never", "--temporary", tmp_path, "--config", node.snapshotter.config,
            "--", "/bin/sh", "-c", "echo some reason; exit 3",
        )  # fmt: skip


def _diff_ids(server: Server, reference: str) -> list[str]:
    repository, _, tag = reference.rpartition(":")
    config = server.registry.manifest(repository, tag)["config"]["digest"]
    ids: list[str] = json.loads(server.registry.blob(repository, config))["rootfs"]["diff_ids"]
    return ids
