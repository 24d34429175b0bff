"""Starts a container of an image once, on mounts and an empty cache of its own, and tells which chunks it reads.

Everything is below a temporary directory that is gone at the end. The kernel reads ahead as little as it can meanwhile, so that
the profile holds what the start needs rather than what lies beside it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from snapshotter.chunkstore.chain import Node
from snapshotter.chunkstore.recorder import read_records
from snapshotter.daemon import worker_main
from snapshotter.daemon.bundle import command_of, runtime_config
from snapshotter.daemon.config import Config
from snapshotter.daemon.keeping import Held
from snapshotter.daemon.layers import Layers
from snapshotter.daemon.origin import Origins
from snapshotter.daemon.reach import Reach
from snapshotter.daemon.sources import LayerSource
from snapshotter.daemon.supervisor import Supervisor
from snapshotter.errors import FailedPreconditionError, UnsupportedError
from snapshotter.format.annotations import MetadataLayer
from snapshotter.format.digest import Digest
from snapshotter.format.fsverity import Mode
from snapshotter.mount import mounting
from snapshotter.mount.connection import Connection

_POLL = 0.1
_STOP_TIMEOUT = 10.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """When a start is over, besides when its command ends: after `quiet` seconds without a chunk read for the first time, and
    after `longest` seconds in any case."""

    quiet: float = 5.0
    longest: float = 120.0


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What a start read, in order; its exit status (None: it went on running), its seconds, what it last wrote."""

    chunks: Sequence[Digest]
    status: int | None
    seconds: float
    output: str


def rehearse(
    layers: Sequence[MetadataLayer],
    image: str,
    image_config: Mapping[str, Any],
    command: Sequence[str],
    *,
    config: Config,
    config_path: Path | None,
    limits: Limits,
    temporary: Path | None = None,
) -> Rehearsed:
    """Run `command` (empty: what `image_config` says) on `layers`, lowest first, whose chunks come from the image `image`.

    Raises:
        FailedPreconditionError: runc is missing, or this user may not mount.
        InvalidError: there is nothing to run.
        PuzzlefsError: a layer cannot be mounted.
    """
    runc = shutil.which("runc")
    if runc is None:
        raise FailedPreconditionError("running a container takes runc: install it, or give a recorded start with --profile")
    words = command_of(image_config, command)
    with contextlib.ExitStack() as stack:
        work = Path(tempfile.mkdtemp(prefix="puzzlefs-", dir=temporary)).resolve()  # runc takes no symlink for a root
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        mountpoints = stack.enter_context(_mounted(work, layers, image, config, config_path))
        root = stack.enter_context(_overlay(work, mountpoints))
        bundle = work / "bundle"
        bundle.mkdir()
        (bundle / "config.json").write_text(json.dumps(runtime_config(image_config, words, root)))
        status, seconds, output = _run(runc, bundle, work, limits)
        return Rehearsed(read_records(sorted((work / "records").glob("*"))), status, seconds, output)


class _RecordingMounts:
    """Mounts layers so that their reads are recorded, and have the kernel read nothing ahead."""

    def __init__(self, supervisor: Supervisor, records: Path) -> None:
        self._supervisor = supervisor
        self._records = records

    def mount(self, name: str, mountpoint: Path, metadata: Path, source: LayerSource) -> None:
        """See `layers.Mounts`."""
        record = self._records / name.removeprefix("sha256:")
        told = replace(source, profile=None, mountpoint=None, background=False, record=str(record))
        self._supervisor.mount(name, mountpoint, metadata, told)
        mounting.set_read_ahead(mountpoint, mounting.PAGE)

    def update(self, mountpoint: Path, source: LayerSource) -> None:
        """See `layers.Mounts`."""
        self._supervisor.update(mountpoint, source)

    def unmount(self, mountpoint: Path) -> None:
        """See `layers.Mounts`."""
        self._supervisor.unmount(mountpoint)


class _KeepsNothing:
    """`keeping.DescriptorStore` of a process whose mounts end with it."""

    def keep(self, name: str, connection: Connection) -> None:
        """See `DescriptorStore`, and so below."""

    def drop(self, name: str) -> None:
        pass

    def take(self) -> dict[str, Connection]:
        return {}

    def close(self) -> None:
        pass


@contextlib.contextmanager
def _mounted(
    work: Path, layers: Sequence[MetadataLayer], image: str, config: Config, config_path: Path | None
) -> Iterator[list[Path]]:
    own = replace(config, root=work / "root", cache_max_bytes=None, fs_verity=Mode.OFF)
    own.root.mkdir(mode=0o700)
    with contextlib.ExitStack() as stack:
        reach = stack.enter_context(Reach(own))
        node = Node(own.root, read_timeout=own.read_timeout)
        stack.callback(node.close)
        held = Held(_KeepsNothing())
        stack.callback(held.close)
        supervisor = Supervisor(worker_main.command(own, config_path), work / "workers", 1, held)
        stack.callback(supervisor.close)
        held.open()
        supervisor.start()
        mounts = _RecordingMounts(supervisor, work / "records")
        origins = Origins(reach.sources.content, reach.ports)
        mounted = Layers(own.root, origins, reach.sources, mounts, node.cache.directory, node.fetch_indexes, node.indexes.trim)
        for layer in layers:
            stack.callback(mounted.release, layer.diff_id)
            mounted.ensure(replace(layer, profile=None), image, "")
        yield [mounted.mountpoint(layer.diff_id) for layer in layers]


@contextlib.contextmanager
def _overlay(work: Path, lower: Sequence[Path]) -> Iterator[Path]:
    """All layers as one root that can be written to."""
    root, upper, scratch = work / "merged", work / "upper", work / "scratch"
    for directory in (root, upper, scratch):
        directory.mkdir()
    lowers = ":".join(str(path) for path in reversed(lower))
    options = f"lowerdir={lowers},upperdir={upper},workdir={scratch},index=off"
    command = ["mount", "-t", "overlay", "-o", options, "overlay", str(root)]
    made = subprocess.run(command, check=False, capture_output=True, text=True)
    if made.returncode != 0:
        raise UnsupportedError(
            f"overlayfs cannot be mounted in {work} ({made.stderr.strip()}): name a directory of a disk with --temporary"
        )
    try:
        yield root
    finally:
        mounting.unmount(root)


def _run(runc: str, bundle: Path, work: Path, limits: Limits) -> tuple[int | None, float, str]:
    """Run the container until its start is over; its exit status, the seconds, and the end of what it wrote."""
    identity = f"puzzlefs-{secrets.token_hex(6)}"
    base = [runc, "--root", str(work / "runc")]
    output = work / "output"
    began = time.monotonic()
    with output.open("wb") as file:
        process = subprocess.Popen(
            [*base, "run", "--bundle", str(bundle), identity],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        seen, since = -1, began
        while process.poll() is None:
            now = time.monotonic()
            size = sum(path.stat().st_size for path in (work / "records").glob("*"))
            if size != seen:
                seen, since = size, now
            if now - began > limits.longest or (size and now - since > limits.quiet):
                break
            time.sleep(_POLL)
        status = process.poll()
        seconds = time.monotonic() - began
    finally:
        if process.poll() is None:
            subprocess.run([*base, "kill", identity, "KILL"], capture_output=True, check=False)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_TIMEOUT)
            process.kill()
            process.wait()
        subprocess.run([*base, "delete", "--force", identity], capture_output=True, check=False)
    return status, seconds, output.read_bytes()[-4096:].decode(errors="replace")
