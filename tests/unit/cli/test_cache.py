"""``puzzlefs cache`` on a root that a snapshotter left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from snapshotter.chunkstore.directory import ChunkDirectory
from snapshotter.cli.main import main
from snapshotter.daemon.sources import LayerSource
from snapshotter.format.digest import Digest, sha256
from snapshotter.format.model import ChunkVerity, Inode, Kind, RootfsContent
from snapshotter.format.writer import encode
from tests.support.chunks import some_chunks

ONE, TWO = "registry.example/app:1", "registry.example/app:2"
CHUNKS = some_chunks(5, size=5000)
BLOCKS = 8192


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images that share a chunk of two each, and a chunk of nobody; one chunk of the second is not here."""
    directory = ChunkDirectory(tmp_path)
    for raw in (CHUNKS[0], CHUNKS[1], CHUNKS[4]):
        directory.store(sha256(raw), raw, wanted=raw is CHUNKS[1])
    for image, chunks in ((ONE, CHUNKS[:2]), (TWO, CHUNKS[1:3])):
        verities = [ChunkVerity(digest, bytes(32)) for digest in sorted(map(sha256, chunks))]
        message = encode(RootfsContent([[Inode(1, Kind.DIR)]], verities))
        layer = tmp_path / "layers" / sha256(message).hex()
        layer.mkdir(parents=True)
        (layer / "metadata").write_bytes(message)
        (layer / "source").write_text(json.dumps(LayerSource((), (image,)).to_json()))
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["cache", *arguments])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_what_images_share_is_told_apart(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "ls", "--root", str(root), "--json")
    assert status == 0
    told = json.loads(out)
    one, two = told["images"]
    assert (one["image"], one["chunks"], one["local"], one["disk"]) == (ONE, 2, 2, 2 * BLOCKS)
    assert (one["shared"], one["own"]) == (BLOCKS, BLOCKS)
    assert (two["image"], two["local"], two["own"]) == (TWO, 1, 0)
    assert (told["disk"], told["unused"], told["recent"]) == (3 * BLOCKS, BLOCKS, BLOCKS)


def test_a_person_gets_a_table(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "ls", "--root", str(root))
    assert ONE in out
    assert "50 %" in out
    assert "8.2 kB were read by containers within a day" in out


def test_prune_removes_what_no_image_has(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "prune", "--root", str(root), "--json")
    assert (status, json.loads(out)) == (0, {"freed": BLOCKS})
    directory = ChunkDirectory(root)
    assert [directory.exists(sha256(raw)) for raw in CHUNKS] == [True, True, False, False, False]


def test_prune_to_a_size_leaves_what_containers_read_for_last(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = root / "config.toml"
    config.write_text('[cache]\nreserve = "100%"')
    assert run(capsys, "prune", "--to", "9KB", "--root", str(root), "--config", str(config))[0] == 0
    directory = ChunkDirectory(root)
    assert [directory.exists(sha256(raw)) for raw in CHUNKS] == [False, True, False, False, False]


def test_prune_to_a_size_removes_more(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "prune", "--to", "0", "--root", str(root))
    assert not any(ChunkDirectory(root).exists(sha256(raw)) for raw in CHUNKS)


def test_verify_removes_what_is_wrong_and_says_so(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = ChunkDirectory(root)
    digest: Digest = sha256(CHUNKS[0])
    Path(directory.file(digest)).write_bytes(b"something else")
    status, _, err = run(capsys, "verify", "--root", str(root))
    assert status == 5
    assert "1 files" in err
    assert not directory.exists(digest)
    assert run(capsys, "verify", "--root", str(root))[0] == 0


def test_a_root_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "ls", "--root", str(tmp_path))
    assert status == 3
    assert str(tmp_path) in err
