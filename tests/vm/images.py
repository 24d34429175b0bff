"""What a virtual machine boots from: kernel, initramfs, root file system, and the code under test as a disk."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import importlib.metadata
import lzma
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support import tools
from tests.support.debian import SUITE, apt_mirrors, apt_proxies
from tests.support.processes import run
from tests.support.tools import MissingToolError

KERNELS = tools.STATE / "kernels"
FS_VERITY = "bookworm-backports"
"""The release of Debian whose cloud kernel has fs-verity."""
OLD = "bullseye"
"""The oldest one whose cloud kernel is still to be had: Linux 5.10."""
KEPT = tools.STATE / "vm"
PYTHON = (3, 11)
"""The version of Debian 12's interpreter, for which the packages of the virtual environment must have been built."""

_INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /new /sbin /bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in {modules}; do insmod /modules/$module.ko || echo "no module $module"; done
while [ ! -b /dev/vda ]; do sleep 0.1; done
mount -t ext4 /dev/vda /new
mkdir -p /new/dev /new/proc /new/sys /new/run
mount -t tmpfs -o mode=755 run /new/run
mkdir /dev/disk
disk=a
for name in {names}; do
    ln -s ../vd$disk /dev/disk/$name
    [ "$name" = code ] && mount -t ext4 -o ro /dev/vd$disk /new/code
    disk=$(echo $disk | tr a-y b-z)
done
init=$(sed 's/.*machine.init=\\([^ ]*\\).*/\\1/' /proc/cmdline)
mount --move /proc /new/proc
mount --move /sys /new/sys
mount --move /dev /new/dev
exec switch_root /new $init
"""

_MACHINE_INIT = """#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
ln -sf /proc/self/fd /dev/fd
ip link set lo up 2>/dev/null || true
hostname machine
exec python3 /usr/local/lib/machine-agent
"""

_AGENT = '''"""Runs the commands that come by the virtual serial port, one line of JSON each, and answers likewise."""

import glob
import json
import os
import signal
import subprocess
import time

while not (ports := glob.glob("/sys/class/virtio-ports/*/name")):
    time.sleep(0.05)
port = "/dev/" + ports[0].split("/")[-2]
if os.path.isdir("/code/source"):
    os.environ["PYTHONPATH"] = "/code/source:/code/packages"
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
os.environ["INSIDE_MACHINE"] = "1"
os.chdir("/")
with open(port, "r+b", buffering=0) as channel:
    channel.write(b"ready\\n")
    received = b""
    while True:
        while b"\\n" not in received:
            data = channel.read(65536)
            if not data:
                time.sleep(0.05)
            received += data or b""
        line, _, received = received.partition(b"\\n")
        request = json.loads(line)
        child = subprocess.Popen(request["command"], shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, start_new_session=True)
        try:
            output, _ = child.communicate(timeout=request["timeout"])
            status = child.returncode
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            output, _ = child.communicate()
            status = None
        answer = memoryview(json.dumps({"status": status, "output": output.decode("utf-8", "replace")}).encode() + b"\\n")
        while answer:
            answer = answer[channel.write(answer):]
'''

_UNIT = """[Unit]
Description=commands from the host
[Service]
ExecStart=/usr/bin/python3 /usr/local/lib/machine-agent
[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, slots=True)
class Root:
    """A root file system: the smallest Debian 12 with `packages`, as an ext4 image that is made once."""

    packages: tuple[str, ...] = ("e2fsprogs", "fsverity", "fuse3", "iproute2", "libstdc++6", "python3")
    megabytes: int = 1024

    @property
    def systemd(self) -> bool:
        """Whether systemd is its first process."""
        return "systemd" in self.packages

    def image(self) -> Path:
        """The image, made if it is not there yet (half a minute).

        Raises:
            CommandError, MissingToolError, NoMirrorError: it cannot be made.
        """
        recipe = "\0".join([*self.packages, str(self.megabytes), _MACHINE_INIT, _AGENT, _UNIT])
        image = KEPT / f"root-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.img"
        KEPT.mkdir(parents=True, exist_ok=True)
        with (KEPT / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not image.exists():
                with tempfile.TemporaryDirectory(prefix="root-", dir=KEPT) as work:
                    tree = Path(work) / "tree"
                    self._populate(tree)
                    make_ext4(Path(work) / "image", self.megabytes, tree)
                    (Path(work) / "image").rename(image)
        return image

    def _populate(self, tree: Path) -> None:
        sources = [f"deb {uri} {suite} main" for uri, suite in apt_mirrors()]
        run("mmdebstrap", "--mode=root", "--variant=essential", f"--include={','.join(self.packages)}",
            *(f"--aptopt={line}" for line in apt_proxies()), "--aptopt=Acquire::Languages none",
            "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
            SUITE, tree, *sources, timeout=900)  # fmt: skip
        for name in ("code", "code/source", "mnt"):
            (tree / name).mkdir(exist_ok=True)
        (tree / "usr/local/lib/machine-agent").write_text(_AGENT)
        init = tree / "sbin/machine-init"
        init.write_text(_MACHINE_INIT)
        init.chmod(0o755)
        if self.systemd:
            unit = tree / "etc/systemd/system/machine-agent.service"
            unit.write_text(_UNIT)
            wants = tree / "etc/systemd/system/multi-user.target.wants"
            wants.mkdir(parents=True, exist_ok=True)
            (wants / unit.name).symlink_to("/etc/systemd/system/machine-agent.service")


def kernel(release: str) -> Path:
    """The image of a release's kernel.

    Raises:
        MissingToolError: `scripts/kernels` has not been run.
    """
    found = sorted((KERNELS / release).glob("boot/vmlinuz-*"))
    if not found:
        raise MissingToolError(f"no kernel in .tools/kernels/{release}: `make kernels` provides it")
    return found[-1]


def initramfs(release: str, modules: Sequence[str], names: Sequence[str]) -> bytes:
    """A first root that loads `modules` of a release's kernel, names the disks by `names` in their order, and goes on into the
    first of them."""
    loaded: dict[str, bytes] = {}
    for module in modules:
        _load(release, module, loaded)
    files = {
        "bin/busybox": (Path(tools.find("busybox")).read_bytes(), 0o755),
        "init": (_INIT.format(modules=" ".join(loaded), names=" ".join(names)).encode(), 0o755),
        **{f"modules/{name}.ko": (data, 0o644) for name, data in loaded.items()},
    }
    return gzip.compress(_cpio(files), 1)


def _load(release: str, module: str, loaded: dict[str, bytes]) -> None:
    """Put `module` behind what it depends on; what is not a file of its own is part of the kernel."""
    names = {module.replace("-", "_"), module.replace("_", "-")}
    files = (file for name in names for file in (KERNELS / release).glob(f"lib/modules/*/kernel/**/{name}.ko*"))
    found = next(files, None)
    if found is None or module in loaded:
        return
    data = found.read_bytes()
    if found.suffix == ".xz":
        data = lzma.decompress(data)
    depends = re.search(rb"\0depends=([^\0]*)\0", data)
    for other in depends[1].decode().split(",") if depends and depends[1] else []:
        _load(release, other, loaded)
    loaded[module] = data


def _cpio(files: dict[str, tuple[bytes, int]]) -> bytes:
    """An archive in the format of the kernel's initramfs ("newc", Documentation/driver-api/early-userspace)."""
    directories = sorted({str(parent) for name in files for parent in Path(name).parents} - {"."})
    members = [(name, b"", 0o040755) for name in directories]
    members += [(name, data, 0o100000 | mode) for name, (data, mode) in files.items()]
    out = bytearray()
    for number, (name, data, mode) in enumerate([*members, ("TRAILER!!!", b"", 0)], 1):
        raw = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
        out += b"070701" + b"".join(b"%08x" % field for field in fields) + raw
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)


def code_image(work: Path) -> Path:
    """This source tree, and the packages that it needs at run time and for its tests, as an image of a read-only disk.

    Raises:
        MissingToolError: this interpreter's packages cannot be used by Debian 12's.
    """
    if sys.version_info[:2] != PYTHON:
        raise MissingToolError(f"tests in the virtual machine need packages built for Python {PYTHON[0]}.{PYTHON[1]}")
    stage = work / "code"
    source = stage / "source"
    ignore = shutil.ignore_patterns("__pycache__", ".*_cache")
    for name in ("snapshotter", "schema", "tests", "pyproject.toml"):
        place = tools.ROOT / name
        if place.is_dir():
            shutil.copytree(place, source / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(place, source / name)
    for file, target in _package_files("puzzlefs-snapshotter", "pytest"):
        (stage / "packages" / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, stage / "packages" / target)
    image = work / "code.img"
    size = sum(file.stat(follow_symlinks=False).st_size + 4096 for file in stage.rglob("*"))
    make_ext4(image, (size >> 20) * 5 // 4 + 32, stage)
    shutil.rmtree(stage)
    return image


def _package_files(*names: str) -> Iterator[tuple[Path, str]]:
    """The files of packages and of what they require, and where each goes below site-packages."""
    pending, seen = list(names), set()
    while pending:
        name = re.sub(r"[-_.]+", "-", pending.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        pending += [re.split(r"[\s;<>=!~\[(]", text)[0] for text in package.requires or () if "extra ==" not in text]
        for file in package.files or ():
            place = Path(str(package.locate_file(file)))
            if ".." not in file.parts and file.suffix != ".pyc" and "__editable__" not in file.name and place.is_file():
                yield place, str(file)


def make_ext4(path: Path, megabytes: int, tree: Path | None, *options: str) -> None:
    """An ext4 image that holds `tree`."""
    with path.open("wb") as file:
        file.truncate(megabytes << 20)
    holds = ["-d", str(tree)] if tree is not None else []
    run(
        "mke2fs",
        "-q",
        "-F",
        "-t",
        "ext4",
        "-b",
        "4096",
        "-E",
        "lazy_itable_init=1,nodiscard",
        *options,
        *holds,
        path,
        timeout=300,
    )
