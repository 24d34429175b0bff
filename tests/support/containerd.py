"""A containerd of one's own: private root, state, sockets and namespace, so that the machine's own notices nothing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support import mounts, processes, tools
from tests.support.processes import CommandError, Service, run
from tests.support.releases import MACHINE, Release

_CRI = ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime")

# CRI takes seconds to start; the block-device snapshotters look at the machine's devices; tracing looks for a collector.
_DISABLED = (
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.internal.v1.tracing",
    "io.containerd.nri.v1.nri",
    "io.containerd.grpc.v1.podsandbox",
)

_CRI_SETTINGS = "stats_collect_period = 1"
"""Seconds between the measurements that CRI answers with."""

_CRI_PODS = "restrict_oom_score_adj = true"
"""A pod gets no lower OOM score than the machine may give: tests may run without CAP_SYS_RESOURCE."""

_DEPLOY = tools.ROOT / "deploy" / "containerd"

_RUNTIME_STATE = Path("/run/containerd")
"""Where containerd's shim puts its sockets, whatever containerd's own state directory is (runtime/v2/shim/util_unix.go)."""


@dataclass(frozen=True, slots=True)
class FirstOutput:
    """What a container wrote, and after how many seconds its first byte came."""

    text: str
    seconds: float


class Containerd:
    """containerd below `directory`, with `snapshotter_socket` (if given) as the proxy plugin ``puzzlefs``.

    It is configured by the lines that ``deploy/containerd`` ships for its release. Commands run in `namespace`, a name that
    nothing else on the machine uses: cgroups are named after it.
    """

    def __init__(
        self,
        directory: Path,
        snapshotter_socket: Path | None = None,
        *,
        release: Release = MACHINE,
        cri: str | None = None,
        change: Callable[[str], str] = str,
    ) -> None:
        """`cri`: the reference of the pause image; without it CRI is off. `change` is made to the shipped lines."""
        self.release = release
        self.directory = directory
        self.socket = directory / "containerd.sock"
        self.namespace = f"pz{uuid.uuid4().hex[:10]}"
        self._made_runtime_state = not _RUNTIME_STATE.exists()
        directory.mkdir(parents=True, exist_ok=True)
        config = directory / "config.toml"
        config.write_text(change(self._config(snapshotter_socket, cri)))
        self.service = self._start(config)

    def _config(self, snapshotter_socket: Path | None, pause: str | None) -> str:
        version = self.release.version
        shipped = deployed(version).read_text() if snapshotter_socket is not None else "version = 2\n"
        shipped = shipped.replace("/run/puzzlefs/snapshotter.sock", str(snapshotter_socket))
        disabled = [*_DISABLED, *(_CRI if pause is None else ())]
        if version < (2, 0):
            cri = f'[plugins."{_CRI[0]}"]\n  sandbox_image = "{pause}"\n  {_CRI_SETTINGS}\n  {_CRI_PODS}\n'
        else:
            images = f'[plugins."{_CRI[1]}"]\n'
            shipped = shipped.replace(images, images + f"  {_CRI_SETTINGS}\n")
            cri = f'[plugins."{_CRI[1]}".pinned_images]\n  sandbox = "{pause}"\n[plugins."{_CRI[2]}"]\n  {_CRI_PODS}\n'
        # keys come before every table
        numbered = re.search(r"^version = \d$", shipped, re.MULTILINE)
        assert numbered is not None
        lines = [
            numbered[0],
            f'root = "{self.directory}/root"',
            f'state = "{self.directory}/state"',
            f"disabled_plugins = {json.dumps(disabled)}",
            "[grpc]",
            f'  address = "{self.socket}"',
            "[ttrpc]",
            f'  address = "{self.socket}.ttrpc"',
            '[plugins."io.containerd.internal.v1.opt"]',
            f'  path = "{self.directory}/opt"',
            cri if pause is not None else "",
            re.sub(r"^version = \d$", "", shipped, flags=re.MULTILINE),
        ]
        return "\n".join(lines)

    def _start(self, config: Path) -> Service:
        program, log = self.release.find("containerd"), self.directory / "containerd.log"
        service = Service([program, "--config", config], log, self.release.environment)
        try:
            service.wait_until(self._answers, "answering")
        except BaseException:
            service.stop()
            raise
        return service

    def restart(self) -> None:
        """Stop containerd and start it on the same state."""
        self.service.stop()
        self.service = self._start(self.directory / "config.toml")

    def ctr(self, *arguments: str | Path, check: bool = True, timeout: float = 120) -> str:
        """What ``ctr`` printed.

        Raises:
            CommandError: it failed, and `check` is set.
        """
        return self._ctr(*arguments, check=check, timeout=timeout).stdout

    def ctr_error(self, *arguments: str | Path) -> str:
        """What ``ctr`` complained about: it must fail."""
        done = self._ctr(*arguments, check=False)
        assert done.returncode != 0, f"ctr {arguments} did not fail: {done.stdout}"
        return done.stderr

    def run(
        self,
        image: str,
        *command: str,
        snapshotter: str,
        check: bool = True,
        timeout: float = 120,
        options: Sequence[str] = (),
    ) -> FirstOutput:
        """Run a container to its end, with further `options` of ``ctr run``; its output, and when the first of it came.

        Raises:
            CommandError: the container's command, or starting it, failed and `check` is set.
        """
        identity = f"c{uuid.uuid4().hex[:10]}"
        words = [
            self.release.find("ctr"),
            "-a",
            str(self.socket),
            "-n",
            self.namespace,
            *self._run_words(snapshotter, "--rm", *options),
            image,
            identity,
        ]
        errors = self.directory / f"{identity}.stderr"
        start = time.monotonic()
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                [*words, *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=self.release.environment,
                start_new_session=True,
            )
        assert process.stdout is not None
        try:
            with process.stdout:
                first = os.read(process.stdout.fileno(), 1)
                seconds = time.monotonic() - start
                text = (first + process.stdout.read()).decode("utf-8", "surrogateescape")
            status = process.wait(timeout)
        except BaseException:
            process.kill()
            process.wait()
            raise
        said = errors.read_text(errors="replace")
        errors.unlink()
        if check and status != 0:
            raise CommandError(f"container of {image} with {snapshotter}: exit status {status}: {said.strip()[-1500:]}")
        return FirstOutput(text if status == 0 else text + said, seconds)

    @contextlib.contextmanager
    def detached(self, image: str, *command: str, snapshotter: str, options: Sequence[str] = ()) -> Iterator[tuple[str, int]]:
        """A container that runs meanwhile; gives (its name, the process id of its command)."""
        identity = f"c{uuid.uuid4().hex[:10]}"
        pid_file = self.directory / f"{identity}.pid"
        self.ctr(*self._run_words(snapshotter, "--detach", "--pid-file", str(pid_file), *options), image, identity, *command)
        try:
            yield identity, int(pid_file.read_text())
        finally:
            self.ctr("tasks", "delete", "--force", identity, check=False)
            self.ctr("containers", "delete", identity, check=False)

    def _run_words(self, snapshotter: str, *more: str) -> list[str]:
        private = ["--fifo-dir", str(self.directory / "fifo"), "--runc-root", str(self.directory / "runc")]
        return ["run", "--snapshotter", snapshotter, *private, "--runc-binary", tools.find("runc"), *more]

    @contextlib.contextmanager
    def snapshot(self, chain_id: str, target: Path, snapshotter: str) -> Iterator[Path]:
        """What a container of the committed snapshot `chain_id` gets, mounted at `target` meanwhile."""
        key = f"active-{uuid.uuid4().hex[:10]}"
        # not `view`: ctr gives that no label that would keep it from containerd's garbage collection
        described = self.ctr("snapshots", "--snapshotter", snapshotter, "prepare", "--mounts", key, chain_id)
        try:
            with mounts.mounted(described, target) as mounted:
                yield mounted
        finally:
            self.ctr("snapshots", "--snapshotter", snapshotter, "remove", key)

    def snapshots(self, snapshotter: str) -> list[list[str]]:
        """Every snapshot as [key, parent, kind], or [key, kind]."""
        return [line.split() for line in self.ctr("snapshots", "--snapshotter", snapshotter, "list").splitlines()[1:]]

    def stop(self) -> None:
        """End containers, shims and containerd; unmount and delete what is below the directory."""
        with contextlib.suppress(CommandError):
            for line in self.ctr("tasks", "list", "-q", check=False).split():
                self.ctr("tasks", "delete", "--force", line, check=False)
        self.service.stop()
        # a shim outlives its containerd on purpose
        for shim in processes.find(lambda words: "containerd-shim" in words[0] and str(self.socket) in words):
            processes.kill(shim)
        for cgroups in [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/")]:
            _remove_cgroup(cgroups / self.namespace)
        mounts.unmount_all(self.directory)
        shutil.rmtree(self.directory)
        if self._made_runtime_state:
            for empty in (_RUNTIME_STATE / "s", _RUNTIME_STATE):
                with contextlib.suppress(OSError):
                    empty.rmdir()

    def _answers(self) -> bool:
        return self.socket.exists() and self._ctr("version", check=False).returncode == 0

    def _ctr(self, *arguments: str | Path, check: bool, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        words = [self.release.find("ctr"), "-a", self.socket, "-n", self.namespace, *arguments]
        return run(*words, check=check, timeout=timeout, environment=self.release.environment)


def deployed(version: tuple[int, int]) -> Path:
    """The configuration that is shipped for a release of containerd."""
    name = "2.x" if version >= (2, 0) else "1.7" if version >= (1, 7) else "1.6"
    return _DEPLOY / f"config-{name}.toml"


def _remove_cgroup(path: Path) -> None:
    if path.is_dir():
        for child in path.iterdir():
            if child.is_dir():
                _remove_cgroup(child)
        with contextlib.suppress(OSError):
            path.rmdir()
