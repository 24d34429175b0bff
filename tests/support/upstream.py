"""Upstream's own program, built once from crates.io where Rust is, and kept under ``.tools/upstream``.

``python3 -m tests.support.upstream`` builds it. The release is not quite what wrote the golden images: its manifests state
the raw size of a compressed chunk, it has no ``mount -w``. All else is equal, byte for byte.
"""

from __future__ import annotations

import fcntl
import shutil
import sys
from pathlib import Path

from tests.support import tools
from tests.support.processes import run

CRATE = "puzzlefs@0.2.0"
_HOME = tools.STATE / "upstream"
PROGRAM = _HOME / "bin" / "puzzlefs"


def program() -> Path:
    """The program, built if need be: about four minutes.

    Raises:
        MissingToolError: it is not there, and neither is Rust.
        CommandError: cargo failed.
    """
    if PROGRAM.exists():
        return PROGRAM
    if shutil.which("cargo") is None:
        raise tools.MissingToolError(f"upstream's program is missing, and so is cargo to build it ({CRATE}); install Rust")
    tools.find("capnp")
    tools.STATE.mkdir(exist_ok=True)
    with (tools.STATE / ".upstream.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not PROGRAM.exists():
            print(f"building {CRATE}", flush=True)
            # a nightly feature is used, which RUSTC_BOOTSTRAP lets a stable compiler take
            run("env", "RUSTC_BOOTSTRAP=1", "cargo", "install", "--quiet", "--locked", CRATE, "--root", _HOME, timeout=1800)
    return PROGRAM


def build(tree: Path, layout: Path, tag: str, *options: str) -> str:
    """Have it build `tree`; the manifest's fs-verity digest that it prints."""
    said = run(program(), "build", *options, tree, f"{layout}:{tag}").stdout
    return said.rsplit(maxsplit=1)[-1]


if __name__ == "__main__":
    try:
        program()
    except tools.MissingToolError as error:
        print(error, file=sys.stderr)  # the tests fail or are skipped for it
