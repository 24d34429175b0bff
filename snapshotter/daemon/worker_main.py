"""The entry point of mount workers: gives `mount.worker` the chunk stores that it knows nothing about."""

from __future__ import annotations

import argparse
import hashlib
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from snapshotter import __version__
from snapshotter.chunkstore.background import BackgroundPolicy
from snapshotter.chunkstore.base import ChunkStore
from snapshotter.chunkstore.chain import Node
from snapshotter.chunkstore.directory import VerityOf
from snapshotter.chunkstore.prefetch import Start
from snapshotter.chunkstore.recorder import Recorded
from snapshotter.chunkstore.reserve import RESERVE, Cap
from snapshotter.daemon import logs, peering
from snapshotter.daemon.config import Config, load
from snapshotter.daemon.keychain import DaemonKeychain
from snapshotter.daemon.keychain import socket_path as keychain_path
from snapshotter.daemon.reach import Reach
from snapshotter.daemon.sources import LayerSource
from snapshotter.daemon.startwindow import Started, StartWindow
from snapshotter.format import fsverity
from snapshotter.mount import worker, workerproto
from snapshotter.mount.processors import Processors

RECORD_SECONDS = 120.0
"""How long a start is recorded at most, from its first read on."""


def command(config: Config, config_path: Path | None, *, sealing: bool = False) -> list[str]:
    """What starts a worker for a daemon with `config`, read from `config_path` if it came from a file.

    `sealing`: whether the kernel's fs-verity checks the cached chunks. Registry settings are not among the arguments, which
    everybody on the machine can read: the worker reads the file itself.
    """
    # -P: not from the directory that the daemon happens to be started in
    arguments = [sys.executable, "-P", "-m", "snapshotter.daemon.worker_main", "--root", str(config.root)]
    arguments += ["--read-timeout", str(config.read_timeout)]
    if config.cache_max_bytes is not None:
        arguments += ["--cache-max-bytes", str(config.cache_max_bytes), "--cache-reserve", str(config.cache_reserve)]
    if sealing:
        arguments += ["--seal"]
    if config.cri_image_service:
        arguments += ["--keychain", str(keychain_path(config.address))]
    if config_path is not None:
        arguments += ["--config", str(config_path)]
    return arguments


def identity(command: Sequence[str], config_path: Path | None) -> str:
    """What a worker of this release with this configuration is known by; one that says something else is replaced.

    Of the configuration's file only when it was changed: everybody can read arguments, and a digest can be guessed at.
    """
    changed = None if config_path is None else (config_path.stat().st_mtime_ns, config_path.stat().st_size)
    return hashlib.sha256(repr((__version__, workerproto.PROTOCOL, list(command), changed)).encode()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one worker until it has nothing to serve any more; its exit status."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--read-timeout", type=float, required=True)
    parser.add_argument("--cache-max-bytes", type=int)
    parser.add_argument("--cache-reserve", type=float, default=RESERVE)
    parser.add_argument("--seal", action="store_true")
    parser.add_argument("--keychain", type=Path)
    parser.add_argument("--config", type=Path)
    options, _ = parser.parse_known_args(arguments)
    # The daemon blocks the signals that end it, and a child inherits that.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    config = load(options.config) if options.config is not None else Config()
    logs.set_up(config.log_level)
    node = Node(
        options.root,
        cap=None if options.cache_max_bytes is None else Cap(options.cache_max_bytes, options.cache_reserve),
        read_timeout=options.read_timeout,
        sealing=fsverity if options.seal else None,
        background=BackgroundPolicy(config.background_quiet, config.background_rate) if config.background else None,
        peers=peering.asking(config.peers),
    )
    told = DaemonKeychain(options.keychain) if options.keychain is not None else None
    reach = Reach(replace(config, read_timeout=options.read_timeout), told)

    def make_store(described: Mapping[str, Any], verity_of: VerityOf) -> ChunkStore:
        source = LayerSource.from_json(described)
        stores = reach.sources.open(source)
        if source.profile is not None or source.start is not None:
            recorded = None if source.start is None else Path(source.start)
            node.bring(source.packs, stores, Start(source.layer, source.profile, recorded))
        make = partial(node.chain, source.packs, stores, source.layer, verity_of, complete=source.background)
        if source.mountpoint is None:
            chain = make()
        else:
            known = source.profile is not None or source.start is not None
            window = StartWindow(Path(source.mountpoint), profile=known)
            chain = Started(make(on_bulk=window.end), window)
        return chain if source.record is None else Recorded(chain, Path(source.record), seconds=RECORD_SECONDS)

    processors = Processors() if config.keep_awake else None
    try:
        return worker.main(make_store, arguments, node.report, processors)
    finally:
        if processors is not None:
            processors.close()
        node.close()
        reach.close()


if __name__ == "__main__":
    sys.exit(main())
