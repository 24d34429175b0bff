"""Ten versions of a Python application: one large package at ten releases, its dependencies pinned.

Each version is a tree under ``.tools/corpus/application``, installed anew by pip as an image's build does it;
``python3 -m bench.corpus.application`` makes what is missing.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from bench.corpus.debian import CORPUS
from tests.support.processes import run

PACKAGE = "pandas"
RELEASES = ("2.0.3", "2.1.0", "2.1.1", "2.1.2", "2.1.3", "2.1.4", "2.2.0", "2.2.1", "2.2.2", "2.2.3")
DEPENDENCIES = ("numpy==1.26.4", "python-dateutil==2.9.0.post0", "pytz==2024.2", "six==1.16.0", "tzdata==2024.2")
PLACE = "opt/application/lib/python3.11/site-packages"


def versions() -> list[Path]:
    """The trees, oldest first, made if they are not there yet. Needs PyPI.

    Raises:
        CommandError: pip failed.
    """
    place = CORPUS / "application"
    if not (place / "versions.json").exists():
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="making-", dir=place) as work:
            for number, release in enumerate(RELEASES, 1):
                tree = Path(work) / f"v{number:02}"
                _install(tree / PLACE, f"{PACKAGE}=={release}")
                target = place / tree.name
                shutil.rmtree(target, ignore_errors=True)
                tree.rename(target)
        (place / "versions.json").write_text(json.dumps([f"{PACKAGE} {release}" for release in RELEASES], indent=1) + "\n")
    return sorted(place.glob("v[0-9][0-9]"))


def _install(target: Path, package: str) -> None:
    target.mkdir(parents=True)
    run(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile",
        "--only-binary=:all:", "--python-version=3.11", "--platform=manylinux2014_x86_64", f"--target={target}",
        package, *DEPENDENCIES, timeout=600)  # fmt: skip


if __name__ == "__main__":
    for tree in versions():
        print(tree)
