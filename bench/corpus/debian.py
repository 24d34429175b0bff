"""Ten versions of one small Debian 12 root file system, as an image's base layer ages in the field.

``v01`` is the distribution as it was released to the mirror, each later one has a few more of its real security updates,
the last a new package besides. What they contain depends on the day they are made (``versions.json`` says which packages
each has), so figures are compared within one run only.

Each version is a tree under ``.tools/corpus/debian``: as root, ``python3 -m bench.corpus.debian`` makes what is missing.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support import tools
from tests.support.debian import SUITE, apt_mirrors, apt_proxies
from tests.support.processes import run

CORPUS = tools.STATE / "corpus"

PACKAGES = "python3,perl,openssl,ca-certificates,tzdata,curl,xz-utils,bind9-host"
"""What the first version has besides the minimal system: what base images of the field have, all with updates since."""

STEPS: Sequence[tuple[str, Sequence[str]]] = [
    ("upgrade", ["apt", "libapt-pkg6.0"]),
    ("upgrade", ["libssl3", "openssl"]),
    ("upgrade", ["libexpat1", "liblzma5", "xz-utils"]),
    ("upgrade", ["perl-base", "perl", "libperl5.36", "perl-modules-5.36"]),
    ("upgrade", ["tzdata", "ca-certificates"]),
    ("upgrade", ["python3.11", "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib"]),
    ("upgrade", ["bind9-host", "bind9-libs"]),
    ("upgrade", ["libssh2-1", "libbrotli1", "libsasl2-2", "libsasl2-modules-db", "libpcre2-8-0"]),
    ("install", ["vim-tiny"]),
]

_LISTS = Path("var/lib/apt/lists")


def versions() -> list[Path]:
    """The trees, oldest first, made if they are not there yet. Needs root and Debian's mirror.

    Raises:
        NoMirrorError: no mirror is configured.
        CommandError: a tool failed.
        MissingToolError: a tool is missing.
    """
    place = CORPUS / "debian"
    if not (place / "versions.json").exists():
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="making-", dir=place) as work:
            _make(place, Path(work))
    return sorted(place.glob("v[0-9][0-9]"))


def _make(place: Path, work: Path) -> None:
    root, lists = work / "root", work / "lists"
    (main, _), *security = apt_mirrors()
    if not security:
        sys.exit("no Debian security mirror (a URI that ends in /debian-security) in apt's sources")
    run("mmdebstrap", "--mode=root", "--variant=minbase", f"--include={PACKAGES}",
        *(f"--aptopt={line}" for line in apt_proxies()), SUITE, root,
        f"deb {main} {SUITE} main", timeout=900)  # fmt: skip
    (root / "etc/apt/sources.list.d/security.list").write_text(f"deb {security[0][0]} {SUITE}-security main\n")
    for name in ("resolv.conf", "hosts"):
        shutil.copy(Path("/etc") / name, root / "etc" / name)
    _apt(root, "update")
    # An image ships without the lists; they are lent for each step, the same ones, so that nothing else changes.
    shutil.move(root / _LISTS, lists)
    (root / _LISTS).mkdir()
    made: list[dict[str, object]] = []

    def keep(change: str) -> None:
        _tidy(root)
        version = f"v{len(made) + 1:02}"
        made.append({"version": version, "change": change, "packages": _packages(root)})
        run("cp", "-a", root, work / version, timeout=300)
        print(f"  {version}: {change}", flush=True)

    keep("release")
    for verb, packages in STEPS:
        shutil.rmtree(root / _LISTS)
        run("cp", "-a", lists, root / _LISTS)
        _apt(root, "install", "--no-install-recommends", *(["--only-upgrade"] if verb == "upgrade" else []), *packages)
        keep(f"{verb} {' '.join(packages)}")
    for version in made:
        target = place / str(version["version"])
        shutil.rmtree(target, ignore_errors=True)
        (work / str(version["version"])).rename(target)
    (place / "versions.json").write_text(json.dumps(made, indent=1) + "\n")


def _apt(root: Path, *arguments: str) -> None:
    proxies = [f"-o{line.replace(' ', '=', 1).rstrip(';')}" for line in apt_proxies()]
    run("chroot", root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-y", *proxies, *arguments, timeout=900)


def _tidy(root: Path) -> None:
    for name in ("var/lib/apt/lists", "var/cache/apt", "var/log", "tmp"):
        for entry in (root / name).iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    (root / _LISTS / "partial").mkdir()


def _packages(root: Path) -> dict[str, str]:
    shown = run("dpkg-query", f"--admindir={root}/var/lib/dpkg", "--show", "--showformat=${Package} ${Version}\\n")
    return dict(line.split() for line in shown.stdout.splitlines())


if __name__ == "__main__":
    for tree in versions():
        print(tree)
