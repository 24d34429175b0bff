"""Bad input to every command: one line on stderr that says what is wrong, the documented status, nothing half-written."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support import samples
from tests.support.images import Image, write_image
from tests.support.processes import run
from tests.support.snapshotter import program, puzzlefs
from tests.system.conftest import Node, Published, Server

USAGE, NOT_FOUND, UNAVAILABLE, CORRUPT, STATE = 2, 3, 4, 5, 7
CANNOT_START = 1
"""The daemon's only other status."""

NOWHERE = "127.0.0.1:1"
"""Nothing listens on port 1."""


def _complaint(done: subprocess.CompletedProcess[str]) -> tuple[int, str]:
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(("puzzlefs: ", "puzzlefs-snapshotter: ")), lines
    assert done.stdout == ""
    return done.returncode, lines[0]


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """A small image that is right."""
    return write_image(tmp_path / "good", "v1", samples.plain())


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["convert"], USAGE, "Missing argument"),
        (["convert", "oci:{tmp}/good:v1"], USAGE, "Missing argument"),
        (["nonsense"], USAGE, "nonsense"),
        (["convert", "--nonsense", "a", "b"], USAGE, "--nonsense"),
        (["convert", "ftp://host/image", "oci:{tmp}/out:v1"], USAGE, "ftp"),
        (["convert", "oci:{tmp}/good:v1", "nonsense"], USAGE, "nonsense"),
        (["convert", "docker://host/UPPER", "oci:{tmp}/out:v1"], USAGE, "UPPER"),
        (["convert", "oci:{tmp}/missing:v1", "oci:{tmp}/out:v1"], NOT_FOUND, "missing"),
        (["convert", "oci:{tmp}/good:missing-tag", "oci:{tmp}/out:v1"], NOT_FOUND, "missing-tag"),
        (["convert", "oci-archive:{tmp}/missing.tar", "oci:{tmp}/out:v1"], NOT_FOUND, "missing.tar"),
        (["convert", f"docker://{NOWHERE}/a:v1", "oci:{tmp}/out:v1"], UNAVAILABLE, NOWHERE),
        (["convert", "oci:{tmp}/good:v1", f"docker://{NOWHERE}/a:v1"], UNAVAILABLE, NOWHERE),
        (["build", "{tmp}/missing", "{tmp}/out:v1"], NOT_FOUND, "missing"),
        (["build", "{tmp}/good/oci-layout", "{tmp}/out:v1"], NOT_FOUND, "oci-layout"),
        (["mount", "{tmp}/missing:v1", "{tmp}"], NOT_FOUND, "missing"),
        (["mount", "{tmp}/good:v1", "{tmp}/missing"], NOT_FOUND, "missing"),
        (["umount", "{tmp}"], NOT_FOUND, "{tmp}"),
        (["extract", "{tmp}/missing:v1", "{tmp}/out"], NOT_FOUND, "missing"),
        (["push", "oci:{tmp}/missing:v1", f"docker://{NOWHERE}/a:v1"], NOT_FOUND, "missing"),
        (["build", "{tmp}/good", "{tmp}/out:v1", "--base-layer", "v0"], NOT_FOUND, "out"),
        (["build", "{tmp}/good", "{tmp}/good:v2", "--base-layer", "v1"], USAGE, "is not an image that puzzlefs build made"),
        (["build", "{tmp}/good", "{tmp}/out:v1", "--mtime", "clamp"], USAGE, "SOURCE_DATE_EPOCH"),
        (["build", "{tmp}/good", "{tmp}/out:v1", "--upstream", "--mtime", "zero"], USAGE, "--mtime"),
        (["verify", "{tmp}/missing:v1"], NOT_FOUND, "missing"),
        (["verify", "{tmp}/good:v1"], USAGE, "not a PuzzleFS image"),
        (["verify", "nonsense"], USAGE, "nonsense"),
        (["verify", f"{NOWHERE}/a:v1"], UNAVAILABLE, NOWHERE),
        (["inspect", "oci:{tmp}/missing:v1"], NOT_FOUND, "missing"),
        (["inspect", "{tmp}/good:v1"], USAGE, "not a PuzzleFS image"),
        (["diff", "{tmp}/good:v1"], USAGE, "Missing argument"),
        (["diff", "{tmp}/good:v1", "{tmp}/good:v2"], USAGE, "not a PuzzleFS image"),
        (["pull"], USAGE, "Missing argument"),
        (["pull", "--socket", "{tmp}/no.sock", f"{NOWHERE}/a:v1"], UNAVAILABLE, "no-pull.sock"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_command(arguments: list[str], status: int, says: str, image: Image, tmp_path: Path) -> None:
    """Wrong arguments, missing files, hosts that are not there."""
    before = sorted(tmp_path.rglob("*"))
    code, line = _complaint(puzzlefs(*(word.format(tmp=tmp_path) for word in arguments), check=False))
    assert says.format(tmp=tmp_path) in line
    assert code == status, line
    assert sorted(tmp_path.rglob("*")) == before


def test_convert_of_a_corrupt_layer(image: Image, tmp_path: Path) -> None:
    """A source layer that is not what its digest says: refused, and the destination has no such image."""
    largest = max((image.layout / "blobs/sha256").iterdir(), key=lambda blob: blob.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    largest.write_bytes(data)
    code, line = _complaint_after_steps(puzzlefs("convert", image.reference, f"oci:{tmp_path}/out:v1", check=False))
    assert code == CORRUPT, line
    assert largest.name[:12] in line
    assert not (tmp_path / "out").exists()


def test_convert_of_a_tar_that_is_none(tmp_path: Path) -> None:
    """A layer that is no tar archive."""
    image = write_image(tmp_path / "bad", "v1", [samples.noise(5000, 1)])
    code, line = _complaint_after_steps(puzzlefs("convert", image.reference, f"oci:{tmp_path}/out:v1", check=False))
    assert code == CORRUPT, line
    assert not (tmp_path / "out").exists()


def test_build_of_a_tree_that_cannot_be_read(tmp_path: Path) -> None:
    """A layout that was there is as it was: what was stored before the failure is gone."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(samples.noise(300_000, 1))
    puzzlefs("build", tmp_path / "tree", f"{tmp_path}/out:v1")
    before = sorted(tmp_path.rglob("*"))
    code, line = _complaint(puzzlefs("build", "/proc/sys/kernel/random", f"{tmp_path}/out:v2", check=False))
    assert (code, "changed while it was read, or is no ordinary file" in line) == (STATE, True), line
    assert sorted(tmp_path.rglob("*")) == before


def _complaint_after_steps(done: subprocess.CompletedProcess[str]) -> tuple[int, str]:
    """The same where steps were reported before it failed: the complaint is the last line and the only one of its kind."""
    complaints = [line for line in done.stderr.splitlines() if line.startswith("puzzlefs: ")]
    assert complaints == done.stderr.splitlines()[-1:], done.stderr
    return done.returncode, complaints[0]


@pytest.mark.root
@pytest.mark.parametrize(
    ("reference", "more", "status", "says"),
    [
        ("plain:missing", [], NOT_FOUND, "missing"),
        ("UPPER", [], USAGE, "UPPER"),
        ("plain:puzzlefs", ["--platform", "linux"], USAGE, "OS/ARCHITECTURE"),
        ("no/such/repository:v1", [], NOT_FOUND, "no/such/repository"),
        ("plain:puzzlefs", ["--snapshotter", "nonsense"], USAGE, "nonsense"),
        ("plain:puzzlefs", ["--platform", "plan9/vax"], NOT_FOUND, "plan9/vax"),
    ],
)
def test_pull(reference: str, more: list[str], status: int, says: str, node: Node, server: Server, plain: Published) -> None:
    """A pull that cannot be done leaves no image, no content and no snapshot."""
    containerd = node.containerd
    done = node.snapshotter.pull(node.reference(reference), containerd.namespace, *more, check=False)
    code, line = _complaint(done)
    assert says in line
    assert code == status, line
    assert containerd.ctr("images", "ls", "-q") == ""
    assert containerd.snapshots("puzzlefs") == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "config.toml"),
        ("root = ", "config.toml"),
        ('rooot = "/x"', "rooot"),
        ('root = "relative"', "relative"),
        ("[fetch]\nread_timeout = -1", "read_timeout"),
        ('log_level = "loud"', "loud"),
        ('[registry."x"]\nplain_http = "yes"', "plain_http"),
    ],
)
def test_daemon_configuration(text: str | None, says: str, tmp_path: Path) -> None:
    """A configuration that cannot be used: the daemon does not start, makes nothing, and says which key of which file."""
    config = tmp_path / "config.toml"
    if text is not None:
        config.write_text(text)
    command = ("--config", str(config), "--root", str(tmp_path / "root"), "--address", str(tmp_path / "socket"))
    code, line = _complaint(run(program("puzzlefs-snapshotter"), *command, check=False))
    assert says in line
    assert code == CANNOT_START, line
    assert not (tmp_path / "root").exists()
    assert not (tmp_path / "socket").exists()


@pytest.mark.parametrize("name", ["file", "directory"])
def test_daemon_address_that_is_taken(name: str, tmp_path: Path) -> None:
    """An address where something else lies: it stays, and nothing is started or made."""
    (tmp_path / "file").write_text("precious")
    (tmp_path / "directory").mkdir()
    command = ("--root", str(tmp_path / "root"), "--address", str(tmp_path / name))
    code, line = _complaint(run(program("puzzlefs-snapshotter"), *command, check=False))
    assert str(tmp_path / name) in line
    assert code == CANNOT_START, line
    assert (tmp_path / "file").read_text() == "precious"
    assert not (tmp_path / "root").exists()
