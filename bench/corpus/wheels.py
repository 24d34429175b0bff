"""Two large root file systems: Debian with what is installed for data science, and with PyTorch and NVIDIA's libraries besides.

Each is a tree under ``.tools/corpus/wheels``: the demonstration's image unpacked, and wheels that pip puts into it, as it does
when an image is made. ``python3 -m bench.corpus.wheels`` makes what is missing: 3 GB from PyPI, 8 GB of disk.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from bench.corpus.debian import CORPUS
from tests.support import debian, tools
from tests.support.processes import run

SCIENCE = (
    "tensorflow-cpu==2.18.0",
    "scipy==1.14.1",
    "pyarrow==17.0.0",
    "opencv-python-headless==4.10.0.84",
)
LEARNING = (
    "torch==2.5.1",
    "triton==3.1.0",
    "nvidia-cublas-cu12==12.4.5.8",
    "nvidia-cudnn-cu12==9.1.0.70",
)
TREES = {"science": SCIENCE, "learning": (*SCIENCE, *LEARNING)}

_PLACE = "opt/application/lib/python3.11/site-packages"
_PLATFORMS = ("manylinux1_x86_64", "manylinux2014_x86_64", "manylinux_2_17_x86_64")


def tree(name: str) -> Path:
    """The tree `name` of `TREES`, made if it is not there yet. Needs PyPI, and root for the Debian.

    Raises:
        CommandError: pip failed.
    """
    place = CORPUS / "wheels"
    made = place / name
    if not made.exists():
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="making-", dir=place) as work:
            root = Path(work) / name
            root.mkdir()
            for layer in debian.layers(debian.image().layout):
                run("tar", "-xzf", layer, "-C", root)
            _install(root / _PLACE, TREES[name])
            root.rename(made)
    return made


def _install(target: Path, packages: tuple[str, ...]) -> None:
    with tempfile.TemporaryDirectory(prefix="pip-", dir=CORPUS) as temporary:
        run(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile",
            "--only-binary=:all:", "--python-version=3.11", *(f"--platform={name}" for name in _PLATFORMS),
            f"--target={target}", *packages, timeout=1800,
            environment={**tools.environment(), "TMPDIR": temporary})  # fmt: skip
    shutil.rmtree(target / "bin", ignore_errors=True)


if __name__ == "__main__":
    for name in TREES:
        print(tree(name))
