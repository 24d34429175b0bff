"""A minimal Debian 12 with some packages, in which tests install and remove things as often as they like."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import mounts, tools
from tests.support.debian import SUITE, apt_mirrors, apt_proxies
from tests.support.processes import CommandError, run

KEPT = tools.STATE / "chroots"


@dataclass(frozen=True, slots=True)
class Chroot:
    """A root directory to run commands in."""

    root: Path

    def run(self, *command: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command in it to its end.

        Raises:
            CommandError: it failed, and `check` is set.
        """
        # those two name directories outside
        return run("env", "PWD=/", "TMPDIR=/tmp", "chroot", self.root, *command, check=check, timeout=timeout)

    def shell(self, script: str, timeout: float = 120) -> str:
        """What a shell script printed, both streams.

        Raises:
            CommandError: it failed.
        """
        done = self.run("/bin/sh", "-c", f"exec 2>&1\nset -e\n{script}", check=False, timeout=timeout)
        if done.returncode != 0:
            raise CommandError(f"in the chroot: status {done.returncode}: {script}\n{done.stdout[-4000:]}")
        return done.stdout


@contextlib.contextmanager
def debian(*packages: str) -> Iterator[Chroot]:
    """A Debian with `packages`; what is changed in it is gone afterwards. Made once (half a minute), then kept. Needs root.

    Raises:
        CommandError, MissingToolError, NoMirrorError: it cannot be made.
    """
    base = _base(packages)
    with contextlib.ExitStack() as stack:
        # not below TMPDIR of the tests: commands in it leave files whose paths are longer than what is looked at there
        work = Path(tempfile.mkdtemp(prefix="chroot-"))
        stack.callback(shutil.rmtree, work)
        stack.callback(mounts.unmount_all, work)
        for name in ("upper", "work", "root"):
            (work / name).mkdir()
        options = f"lowerdir={base},upperdir={work}/upper,workdir={work}/work"
        run("mount", "-t", "overlay", "overlay", "-o", options, work / "root")
        run("mount", "-t", "proc", "proc", work / "root/proc")
        run("mount", "--bind", "/dev/null", work / "root/dev/null")
        yield Chroot(work / "root")


def _base(packages: tuple[str, ...]) -> Path:
    recipe = "\0".join([SUITE, *packages])
    base = KEPT / hashlib.sha256(recipe.encode()).hexdigest()[:16]
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not base.is_dir():
            with tempfile.TemporaryDirectory(prefix="new-", dir=KEPT) as work:
                tree = Path(work) / "tree"
                sources = [f"deb {uri} {suite} main" for uri, suite in apt_mirrors()]
                options = [f"--aptopt={line}" for line in (*apt_proxies(), "Acquire::Languages none")]
                options += ["--dpkgopt=path-exclude=/usr/share/locale/*"]
                include = f"--include={','.join(packages)}"
                run("mmdebstrap", "--mode=root", "--variant=minbase", include, *options, SUITE, tree, *sources, timeout=900)
                # mmdebstrap's device files are of no use over which /dev/null is to be mounted
                (tree / "dev/null").unlink(missing_ok=True)
                (tree / "dev/null").touch()
                tree.rename(base)
    return base
