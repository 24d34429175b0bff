"""A systemd of one's own: the machine's root under a throw-away layer, in namespaces, with systemd as process 1.

It runs beside whatever manages the machine and needs no image: the programs and the source tree are the machine's. What is
written goes to memory and is gone with `Container.stop`. Units of the machine are not there; only systemd's own start.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
import uuid
from pathlib import Path

from tests.support import tools
from tests.support.processes import CommandError, find, kill

_BOOT = r"""
set -eu
work=$1 source=$2
mount --make-rprivate /
mount -t tmpfs tmpfs "$work"
mkdir "$work/upper" "$work/work" "$work/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$work/root"
cd "$work/root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for directory in run tmp var/tmp dev; do mount -t tmpfs -o mode=1777 tmpfs $directory; done
chmod 755 run dev
# the source tree may be in one of them
mkdir -p ".$source"
mount --bind "$source" ".$source"
for device in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 fuse:10:229; do
    IFS=: read -r name major minor <<< "$device"
    mknod -m 666 "dev/$name" c "$major" "$minor"
done
mkdir dev/pts dev/shm .before
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount -t tmpfs tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mkdir -p var/lib/puzzlefs
mount -t tmpfs -o mode=0700 tmpfs var/lib/puzzlefs
pivot_root . .before
umount -l .before
mount --make-rshared /
rm -rf /etc/systemd/system /etc/machine-id
mkdir -p /etc/systemd/system
# These would change the machine, or wait for what is not there.
for unit in sysctl modules-load udevd udev-trigger networkd timesyncd resolved logind tmpfiles-clean; do
    ln -s /dev/null "/etc/systemd/system/systemd-$unit.service"
done
printf '[Unit]\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n' > /etc/systemd/system/test.target
systemd-machine-id-setup >/dev/null 2>&1 || true
export container=test
exec /lib/systemd/systemd --system --unit=test.target --log-target=journal --show-status=0
"""


class Container:
    """Boots at once; `run` runs programs in it."""

    def __init__(self, directory: Path) -> None:
        """`directory` is used as a mountpoint, in another mount namespace.

        Raises:
            MissingToolError: there is no systemd.
            CommandError: it does not come up.
        """
        tools.find("systemctl")
        self._name = f"pz{uuid.uuid4().hex[:10]}"
        self._cgroup = _unified() / self._name
        self._cgroup.mkdir()
        work = directory / self._name
        work.mkdir(parents=True)
        unshare = "exec unshare --mount --pid --fork --uts --ipc --cgroup"
        script = f'echo $$ > {self._cgroup}/cgroup.procs; {unshare} bash -c "$0" boot "$1" "$2"'
        self._log = directory / f"{self._name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", script, _BOOT, work, tools.ROOT],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=tools.environment(),
                start_new_session=True,
            )
        try:
            self._init = self._wait()
        except BaseException:
            self.stop()
            raise

    def run(self, *command: str | Path, timeout: float = 120, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program in it.

        Raises:
            CommandError: it failed, and `check` is set.
        """
        inside = ["nsenter", "-t", str(self._init), "-m", "-p", "-u", "-i", "-C"]
        inside += ["sh", "-c", 'cd "$0" && exec "$@"', str(tools.ROOT)]
        done = subprocess.run(
            [*inside, *map(str, command)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=timeout,
            env=tools.environment() | {"TMPDIR": "/tmp"},
        )
        if check and done.returncode != 0:
            raise CommandError(
                f"{' '.join(map(str, command))}: exit status {done.returncode}: {done.stdout}{done.stderr}"[-8000:]
            )
        return done

    def stop(self) -> None:
        """Kill process 1, and with it all others, their namespaces and mounts."""
        for pid in self._children():
            kill(pid)
        self._process.kill()
        self._process.wait()
        deadline = time.monotonic() + 20
        below = sorted((path for path in self._cgroup.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts))
        for directory in [*below, self._cgroup]:
            while directory.exists():
                with contextlib.suppress(OSError):
                    directory.rmdir()
                    break
                if time.monotonic() > deadline:
                    raise CommandError(f"{directory} cannot be removed: something in it still runs")
                time.sleep(0.05)

    def _children(self) -> list[int]:
        pid = self._process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()] if self._alive() else []

    def _alive(self) -> bool:
        return self._process.poll() is None

    def _wait(self) -> int:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._alive():
            found = [pid for pid in self._children() if find(lambda words: "--unit=test.target" in words).count(pid)]
            if found:
                self._init = found[0]
                done = self.run("systemctl", "is-system-running", check=False)
                if done.stdout.strip() in ("running", "degraded"):
                    return found[0]
            time.sleep(0.1)
        raise CommandError(f"systemd did not come up:\n{self._log.read_text(errors='replace')[-4000:]}")


def _unified() -> Path:
    """The root of cgroup v2, which may stand beside v1."""
    for candidate in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")):
        if (candidate / "cgroup.controllers").exists():
            return candidate
    raise tools.MissingToolError("cgroup v2 is not mounted, at /sys/fs/cgroup or /sys/fs/cgroup/unified")
