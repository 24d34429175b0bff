"""fio, which checks what it reads: every block carries its place and a checksum, written by fio itself before."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.engines import Engine, Mounted
from tests.mount.source import Builder
from tests.support.processes import run

SIZE = "16m"
BLOCKS = 4096
VERIFIED = ("--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", f"--size={SIZE}", "--bs=4k")


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a file that fio wrote, as an image directory."""
    directory = tmp_path_factory.mktemp("fio")
    (directory / "source").mkdir()
    run("fio", "--name=write", f"--filename={directory}/source/data", "--rw=write", "--do_verify=0", *VERIFIED)
    builder = Builder()
    builder.add_tree(directory / "source")
    return builder.write(directory / "image")


@pytest.fixture(scope="module")
def fio_mount(engine: Engine, written: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """That image, mounted by the engine."""
    with engine.mounted(written, tmp_path_factory.mktemp("fio-mount") / "m") as mount:
        yield mount


def verified(path: Path, *options: str) -> int:
    """How many blocks fio read and found right, in four processes."""
    run_options = (
        "--name=verify",
        f"--filename={path}",
        "--readonly",
        "--numjobs=4",
        "--group_reporting",
        "--output-format=json",
    )
    done = run("fio", *run_options, *VERIFIED, *options)
    return int(json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["read"]["total_ios"])


@pytest.mark.parametrize("pattern", ["read", "randread"])
@pytest.mark.parametrize("way", ["--ioengine=psync", "--ioengine=mmap", "--direct=1"])
def test_every_block_is_what_was_written(fio_mount: Mounted, pattern: str, way: str) -> None:
    assert verified(fio_mount.path / "data", f"--rw={pattern}", way) == 4 * BLOCKS


def test_fio_finds_a_wrong_block(tmp_path: Path) -> None:
    """The tests above can fail."""
    damaged = tmp_path / "data"
    run("fio", "--name=write", f"--filename={damaged}", "--rw=write", "--do_verify=0", *VERIFIED)
    with damaged.open("r+b") as file:
        os.pwrite(file.fileno(), b"other", 5_000_000)
    done = run("fio", "--name=verify", f"--filename={damaged}", "--readonly", "--rw=read", *VERIFIED, check=False)
    assert done.returncode != 0
    assert "verify failed" in done.stderr
