"""A virtual machine with a kernel that this one may not have: one of Debian's cloud kernels under qemu, in software emulation.

    with Machine(work, code=True, disks=[work / "disk.img"]) as machine:
        done = machine.run("python3 -c 'print(1)'", timeout=60)      # as root, through sh
        assert done.status == 0, done.output

It boots to the first command in 5 to 10 seconds; a program takes some ten times as long as on the host. Inside there is a
minimal Debian 12 (`Root`, made once and kept under ``.tools/vm``; what a machine writes to it is gone with the machine), with
``code`` this source tree at /code/source with the packages of the virtual environment (``python3`` finds both), and each of
`disks` as /dev/disk/<name without suffix>, changes kept. There are FUSE and ext4; further `modules` are loaded by name with
what they depend on. With ``systemd`` among the root's packages, systemd is process 1; otherwise a script is.

Needs no privileges but those that making a root takes (root, for mmdebstrap).
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.support import tools
from tests.support.processes import CommandError, Service
from tests.vm import images

_DEVICES = ("virtio_pci", "virtio_blk", "virtio_console", "fuse")
"""Modules that every machine needs; where they are part of the kernel there is nothing to load."""
BOOT_TIMEOUT = 180.0
"""Seconds until the machine must answer; 5 on an idle host."""
BOOTS = 3
"""How often it is started until it comes up. Kernels patch their own code while they boot, with breakpoints in it; with two
processors the emulator now and then runs into one that is gone already, which ends the kernel before anything of ours runs."""
_PATCHED = "Oops: int3"


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended inside: its status (as `subprocess` has it; None where its time was over), and what it wrote."""

    status: int | None
    output: str


class Machine:
    """One virtual machine, from `__enter__` to `__exit__`, which ends it like a power cut."""

    def __init__(
        self,
        work: Path,
        *,
        kernel: str = images.FS_VERITY,
        root: images.Root | None = None,
        code: bool = False,
        disks: Sequence[Path] = (),
        modules: Sequence[str] = ("overlay",),
        memory: int = 1024,
        kernel_arguments: str = "",
    ) -> None:
        """`work`: a directory for its files, not too deep (a socket's path has at most 107 bytes). `memory` in MiB."""
        self._work = work
        self._console = work / "console.log"
        self._socket = work / "agent"
        chosen = root or images.Root()
        drives: list[tuple[Path, bool]] = [(chosen.image(), True)]
        mounts = []
        if code:
            drives.append((images.code_image(work), True))
            mounts.append("code")
        drives += [(disk, False) for disk in disks]
        names = ["root", *mounts, *(disk.stem for disk in disks)]
        initramfs = work / "initramfs"
        initramfs.write_bytes(images.initramfs(kernel, [*_DEVICES, *modules], names))
        init = "/lib/systemd/systemd" if chosen.systemd else "/sbin/machine-init"
        self._command: list[str | Path] = [
            tools.find("qemu-system-x86_64"), "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
            "-accel", "tcg,thread=multi", "-cpu", "Westmere,-cx16", "-smp", "2", "-m", str(memory),
            "-kernel", images.kernel(kernel), "-initrd", initramfs,
            "-append", f"console=ttyS0 quiet panic=-1 mitigations=off machine.init={init} {kernel_arguments}",
            "-serial", f"file:{self._console}",
            "-device", "virtio-serial", "-device", "virtserialport,chardev=agent,name=agent",
            "-chardev", f"socket,id=agent,path={self._socket},server=on,wait=off",
        ]  # fmt: skip
        for path, discard in drives:
            self._command += ["-drive", f"file={path},format=raw,if=virtio,snapshot={'on' if discard else 'off'}"]

    def __enter__(self) -> Machine:
        """Boot.

        Raises:
            CommandError: it did not come up; the message has the end of its console.
            MissingToolError: qemu, the kernel or what makes images is missing.
        """
        for left in reversed(range(BOOTS)):
            try:
                self._boot()
                break
            except CommandError:
                if not left or _PATCHED not in self.console():
                    raise
        return self

    def _boot(self) -> None:
        self._socket.unlink(missing_ok=True)
        self._qemu = Service(self._command, self._work / "qemu.log")
        self._stack = contextlib.ExitStack()
        self._stack.callback(self._qemu.stop)
        try:
            self._qemu.wait_until(self._socket.exists, "listening", 60)
            self._channel = self._stack.enter_context(socket.socket(socket.AF_UNIX))
            self._channel.connect(str(self._socket))
            self._received = b""
            self._receive(BOOT_TIMEOUT)  # the agent's greeting
        except BaseException:
            self._stack.close()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End it at once: what was not synced to a disk is lost."""
        self._stack.close()

    def run(self, command: str, timeout: float = 120) -> Completed:
        """Run a shell command inside, as root, and wait for its end.

        Raises:
            CommandError: the machine died, or does not answer within `timeout` and a minute.
        """
        self._channel.sendall(json.dumps({"command": command, "timeout": timeout}).encode() + b"\n")
        answer = json.loads(self._receive(timeout + 60))
        return Completed(answer["status"], answer["output"])

    def check(self, command: str, timeout: float = 120) -> str:
        """What a command writes that must end with status 0.

        Raises:
            CommandError: it did not; or as for `run`.
        """
        done = self.run(command, timeout)
        if done.status != 0:
            raise CommandError(f"in the machine, {command}: status {done.status}:\n{done.output[-8000:]}")
        return done.output

    def console(self) -> str:
        """What the kernel and its first process wrote."""
        return self._console.read_text(errors="replace") if self._console.exists() else ""

    def _receive(self, timeout: float) -> bytes:
        deadline = time.monotonic() + timeout
        while b"\n" not in self._received:
            self._channel.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                data = self._channel.recv(1 << 20)
            except TimeoutError:
                data = b""
            if not data:
                raise CommandError(f"the machine does not answer; its console:\n{self.console()[-4000:]}{self._qemu.log_end()}")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line


def make_disk(path: Path, megabytes: int, *options: str) -> Path:
    """An image of an empty ext4 file system of 4096-byte blocks; `options` are further ones of mke2fs (``-O verity``)."""
    images.make_ext4(path, megabytes, None, *options)
    return path
