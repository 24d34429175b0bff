"""``make deb``: the Debian package, made from what this tree's virtual environment was tested with.

::

    /usr/lib/puzzlefs/                    a virtual environment: Debian's own Python, our package, its libraries
    /usr/bin/puzzlefs                     → there
    /usr/sbin/puzzlefs-snapshotter        → there
    /lib/systemd/system/                  the units
    /etc/puzzlefs/config.toml             the configuration, kept when changed
    /usr/share/                           manual pages, completions, examples

The libraries are copied from the environment, whose versions and hashes requirements.lock pins, so the package needs nothing
that Debian does not have and is for the Python version that it was made with. Byte code is made here: the daemon writes
nothing into /usr.
"""

from __future__ import annotations

import argparse
import compileall
import datetime
import gzip
import hashlib
import os
import platform
import py_compile
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import click
from click.shell_completion import get_completion_class
from packaging.requirements import Requirement

from package import manpages
from snapshotter import __version__
from snapshotter.cli.main import puzzlefs
from snapshotter.daemon.main import serve

ROOT = Path(__file__).resolve().parents[1]
NAME = "puzzlefs-snapshotter"
HOME = Path("usr/lib/puzzlefs")
EXTRAS = ("s3",)
DEBIAN_PYTHON = "/usr/bin/python3"
PROGRAMS = {
    "puzzlefs": ("usr/bin", "snapshotter.cli.main"),
    "puzzlefs-snapshotter": ("usr/sbin", "snapshotter.daemon.main"),
}
CONFIG = "etc/puzzlefs/config.toml"
COMPLETIONS = {
    "bash": "usr/share/bash-completion/completions/puzzlefs",
    "zsh": "usr/share/zsh/vendor-completions/_puzzlefs",
    "fish": "usr/share/fish/vendor_completions.d/puzzlefs.fish",
}
_LEFT_OUT = re.compile(r"(^|/)(__pycache__|tests?|testing)/|\.(pyc|pyx|pxd|pyi|c|cc|cpp|h|hpp|a)$|^\.\./")
"""Of the libraries: what only their builders and testers need."""


def build(target: Path, date: datetime.date) -> Path:
    """The package below the directory `target`. `date` goes into manual pages and changelog."""
    with tempfile.TemporaryDirectory(prefix="puzzlefs-deb-") as work:
        tree = Path(work) / "tree"
        _environment(tree)
        _files(tree, date)
        _control(tree)
        target.mkdir(parents=True, exist_ok=True)
        made = target / f"{NAME}_{__version__}_{_architecture()}.deb"
        stamp = {
            **os.environ,
            "SOURCE_DATE_EPOCH": str(int(datetime.datetime.combine(date, datetime.time(), datetime.UTC).timestamp())),
        }
        command = ["dpkg-deb", "--root-owner-group", "-Zzstd", "-z6", "--build", str(tree), str(made)]
        subprocess.run(command, check=True, env=stamp, stdout=subprocess.DEVNULL)
    return made


def closure(name: str, extras: tuple[str, ...] = ()) -> dict[str, metadata.Distribution]:
    """The installed distribution `name` and all that it needs, by normalized name."""
    found: dict[str, metadata.Distribution] = {}
    pending = [(name, extras)]
    while pending:
        wanted, with_extras = pending.pop()
        key = re.sub(r"[-_.]+", "-", wanted).lower()
        if key in found:
            continue
        found[key] = metadata.distribution(wanted)
        for text in found[key].requires or []:
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *with_extras)):
                pending.append((requirement.name, tuple(requirement.extras)))
    return found


def _environment(tree: Path) -> None:
    """A virtual environment, which is three files (PEP 405), around Debian's interpreter, wherever this one is from."""
    home = tree / HOME
    site = home / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    site.mkdir(parents=True)
    (home / "bin").mkdir()
    (home / "bin/python3").symlink_to(DEBIAN_PYTHON)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    (home / "pyvenv.cfg").write_text(f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {version}\n")
    for key, distribution in closure(NAME, EXTRAS).items():
        if key != NAME:
            _copy(distribution, site)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--no-build-isolation", "--no-compile", "--target", str(site), str(ROOT)),
        ],
        check=True,
    )
    shutil.rmtree(site / "bin", ignore_errors=True)
    for program, (directory, module) in PROGRAMS.items():
        script = home / "bin" / program
        # -I: neither the user's environment nor the current directory can put another module before ours.
        script.write_text(f"#!/{HOME}/bin/python3 -I\nimport sys\n\nfrom {module} import main\n\nsys.exit(main())\n")
        script.chmod(0o755)
        (tree / directory).mkdir(parents=True, exist_ok=True)
        (tree / directory / program).symlink_to(f"/{HOME}/bin/{program}")
    installed = f"/{site.relative_to(tree)}"
    compileall.compile_dir(
        site, quiet=2, ddir=installed, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH, workers=0
    )


def _copy(distribution: metadata.Distribution, site: Path) -> None:
    for file in distribution.files or []:
        if not _LEFT_OUT.search(str(file)):
            source, destination = Path(str(distribution.locate_file(file))), site / str(file)
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, destination)


def _files(tree: Path, date: datetime.date) -> None:
    _install(ROOT / "deploy/puzzlefs/config.toml", tree / CONFIG, 0o600)
    (tree / CONFIG).parent.chmod(0o755)
    for unit in (ROOT / "systemd").iterdir():
        _install(unit, tree / "lib/systemd/system" / unit.name)
    for shell, path in COMPLETIONS.items():
        complete = get_completion_class(shell)
        assert complete is not None
        _write(tree / path, complete(puzzlefs, {}, "puzzlefs", "_PUZZLEFS_COMPLETE").source())
    for name, text in manual(date):
        _compressed(tree / f"usr/share/man/man{name.rpartition('.')[2]}/{name}.gz", text)
    documents = tree / "usr/share/doc" / NAME
    for example in sorted((ROOT / "deploy").rglob("*")):
        if example.is_file() and example.name != "config.toml":
            _install(example, documents / "examples" / example.relative_to(ROOT / "deploy"))
    _install(ROOT / "README.md", documents / "README.md")
    _write(documents / "copyright", _copyright())
    changes = f"{NAME} ({__version__}) stable; urgency=medium\n\n  * See /usr/share/doc/{NAME}/README.md.\n\n"
    stamp = datetime.datetime.combine(date, datetime.time(), datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S %z")
    _compressed(documents / "changelog.gz", f"{changes} -- {MAINTAINER}  {stamp}\n")


MAINTAINER = "PuzzleFS snapshotter maintainers <puzzlefs@localhost>"


def manual(date: datetime.date) -> list[tuple[str, str]]:
    """(file name, roff) of every manual page."""
    also = ["puzzlefs-snapshotter(8)", "puzzlefs-config(5)"]
    shipped = (ROOT / "deploy/puzzlefs/config.toml").read_text()
    config = manpages.configuration_page(
        shipped, "puzzlefs-config", f"/{CONFIG}", date=date, see_also=["puzzlefs(1)", "puzzlefs-snapshotter(8)"]
    )
    daemon: click.Command = serve
    return [
        *manpages.pages(puzzlefs, "puzzlefs", 1, date=date, see_also=also),
        *manpages.pages(daemon, "puzzlefs-snapshotter", 8, date=date, see_also=["puzzlefs(1)", "puzzlefs-config(5)"]),
        ("puzzlefs-config.5", config),
    ]


def _control(tree: Path) -> None:
    control = tree / "DEBIAN"
    control.mkdir()
    size = sum(path.lstat().st_size for path in tree.rglob("*") if path.is_file()) // 1024
    major, minor = sys.version_info.major, sys.version_info.minor
    text = (
        (ROOT / "package/debian/control")
        .read_text()
        .format(
            name=NAME,
            version=__version__,
            architecture=_architecture(),
            maintainer=MAINTAINER,
            size=size,
            python=f"python3 (>= {major}.{minor}), python3 (<< {major}.{minor + 1})",
            libc=platform.libc_ver()[1],
        )
    )
    (control / "control").write_text(text)
    (control / "conffiles").write_text(f"/{CONFIG}\n")
    for script in ("postinst", "prerm", "postrm"):
        _install(ROOT / "package/debian" / script, control / script, 0o755)
    sums = [
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(tree)}\n"
        for path in sorted(tree.rglob("*"))
        if path.is_file() and not path.is_symlink() and control not in path.parents and path != tree / CONFIG
    ]
    (control / "md5sums").write_text("".join(sums))


def _copyright() -> str:
    """The licences of all that is in the package, from what each library says of itself."""
    lines = ["Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/", f"Upstream-Name: {NAME}", ""]
    for key, distribution in sorted(closure(NAME, EXTRAS).items()):
        told = distribution.metadata
        named = [value.rpartition(" :: ")[2] for value in told.get_all("Classifier") or [] if value.startswith("License ::")]
        texts = [text.partition("\n")[0] for text in told.get_all("License-Expression") or told.get_all("License") or []]
        lines += [
            "Files: *" if key == NAME else f"Files: {HOME}/lib/*/site-packages/{key}*",
            f"Copyright: the authors of {key}",
        ]
        lines += [f"License: {', '.join(texts or named) or 'see its files'}", ""]
    return "\n".join(lines)


def _architecture() -> str:
    done = subprocess.run(["dpkg", "--print-architecture"], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _install(source: Path, destination: Path, mode: int = 0o644) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, destination)
    destination.chmod(mode)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _compressed(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def main() -> None:
    """Make the package and say where it is."""
    parser = argparse.ArgumentParser(description="Make the Debian package.")
    parser.add_argument("--target", type=Path, default=ROOT / "dist", help="the directory for it")
    options = parser.parse_args()
    os.umask(0o022)
    changed = subprocess.run(["git", "log", "-1", "--format=%cs"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    date = datetime.date.fromisoformat(changed.strip()) if changed.strip() else datetime.datetime.now(datetime.UTC).date()
    print(build(options.target, date))


if __name__ == "__main__":
    main()
