"""verify, inspect and diff as a user runs them: what is printed, what programs get, how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from snapshotter.build.image import Options
from snapshotter.build.layout import build_layout
from snapshotter.build.push import push
from snapshotter.chunkstore.directory import ChunkDirectory
from snapshotter.cli.examine import diff, inspect, verify
from snapshotter.errors import CorruptError, NotFoundError
from snapshotter.format.digest import sha256
from snapshotter.registry.layout import LayoutStore
from tests.support.samples import noise


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A layout with two versions of a tree, ``v1`` and ``v2`` as built and ``p1`` and ``p2`` in packs."""
    store = LayoutStore(tmp_path / "images", durable=False)
    (tmp_path / "tree").mkdir()
    for version in (1, 2):
        (tmp_path / "tree" / "large").write_bytes(noise(400_000, 1))
        (tmp_path / "tree" / f"new\n{version}").write_bytes(noise(40_000, 10 + version))
        build_layout(tmp_path / "tree", store, f"v{version}", options=Options(workers=2))
        push(store, f"v{version}", store, f"p{version}", options=Options(workers=2))
    return store.root


def test_verify(images: Path) -> None:
    done = CliRunner().invoke(verify, [f"{images}:p1"], catch_exceptions=False)
    assert done.exit_code == 0
    assert done.output.endswith(" checked\n")
    assert len(done.output.splitlines()) == 1
    said = json.loads(CliRunner().invoke(verify, [f"oci:{images}:v1", "--json"], catch_exceptions=False).stdout)
    assert (said["images"], said["errors"], said["findings"]) == (1, 0, [])


def test_verify_of_a_corrupt_image(images: Path) -> None:
    largest = max((images / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[5000] ^= 1
    largest.write_bytes(data)
    done = CliRunner().invoke(verify, [f"{images}:p1"])
    assert isinstance(done.exception, CorruptError)
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"error: pack sha256:{largest.name} is corrupt")
    assert "(of /large)" in lines[1]
    done = CliRunner().invoke(verify, [f"{images}:p1", "--json"])
    assert isinstance(done.exception, CorruptError)
    said = json.loads(done.stdout)
    assert said["errors"] == len(said["findings"]) == 2


@pytest.mark.parametrize("tag", ["v1", "p1"])
def test_inspect(images: Path, tag: str) -> None:
    done = CliRunner().invoke(inspect, [f"{images}:{tag}"], catch_exceptions=False)
    assert "440.0 kB in files" in done.output
    said = json.loads(CliRunner().invoke(inspect, [f"{images}:{tag}", "--json"], catch_exceptions=False).stdout)
    assert (said["file_bytes"], said["inodes"], len(said["layers"])) == (440_000, 3, 1)
    assert len(said["packs"]) == (1 if tag == "p1" else 0)
    assert said["layers"][0]["diff_id"].startswith("sha256:")


def test_diff(images: Path) -> None:
    done = CliRunner().invoke(diff, [f"{images}:p1", f"{images}:p2"], catch_exceptions=False)
    assert r"/new\n2" in done.output
    assert "400.0 kB" not in done.output.partition("there already")[2]
    said = json.loads(CliRunner().invoke(diff, [f"{images}:v1", f"{images}:p2", "--json"], catch_exceptions=False).stdout)
    assert [file["path"] for file in said["files"]] == ["/new\n2"]
    assert said["files"][0]["new"] == said["raw_bytes"] == 40_000
    assert said["total"] > said["chunk_bytes"] >= 40_000


def test_verify_cache(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'root = "{tmp_path}/root"\n')
    assert isinstance(CliRunner().invoke(verify, ["cache", "--config", str(config)]).exception, NotFoundError)
    directory = ChunkDirectory(tmp_path / "root")
    directory.store(sha256(b"right"), b"right")
    done = CliRunner().invoke(verify, ["cache", "--config", str(config)], catch_exceptions=False)
    assert "1 chunks" in done.output
    Path(directory.file(sha256(b"right"))).write_bytes(b"wrong")
    done = CliRunner().invoke(verify, ["cache", "--config", str(config), "--json"])
    assert isinstance(done.exception, CorruptError)
    said = json.loads(done.stdout)
    assert (said["chunks"], said["errors"]) == (1, 1)
    assert sha256(b"right").hex() in said["problems"][0]
