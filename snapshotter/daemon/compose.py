"""Puts the daemon together: the one place where it can be read what is connected to what.

::

    gRPC server → snapshots and diff service → Snapshotter → Layers → Registries        (metadata, pack indexes)
                                                      └───→ Supervisor → mount workers → chunk store chain
                                                                └──────→ Held → descriptor store
    other nodes → PeerServer → chunk cache
    puzzlefs pull → PullServer → Registries, containerd
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from snapshotter.api import diff_pb2_grpc, snapshots_pb2, snapshots_pb2_grpc
from snapshotter.chunkstore.chain import Node
from snapshotter.chunkstore.directory import Sealing
from snapshotter.daemon import peering, worker_main
from snapshotter.daemon.activity import Activity
from snapshotter.daemon.addresses import pull_socket, socket_path
from snapshotter.daemon.allowance import Allowance
from snapshotter.daemon.config import Config
from snapshotter.daemon.criproxy import ImageServiceProxy
from snapshotter.daemon.keeping import Held, KeeperStore, SystemdStore
from snapshotter.daemon.keychain import Keychain, KeychainServer
from snapshotter.daemon.keychain import socket_path as keychain_path
from snapshotter.daemon.layers import Layers
from snapshotter.daemon.origin import Origins
from snapshotter.daemon.peering import PeersConfig
from snapshotter.daemon.peerserver import PeerServer
from snapshotter.daemon.pull import pull_here
from snapshotter.daemon.pullserver import PullServer
from snapshotter.daemon.reach import Reach
from snapshotter.daemon.shifted import Shifted
from snapshotter.daemon.status import RecentErrors, Status
from snapshotter.daemon.statusserver import StatusServer
from snapshotter.daemon.store.images import RegistryImages
from snapshotter.daemon.store.service import serving, take_off
from snapshotter.daemon.store.state import References
from snapshotter.daemon.supervisor import Supervisor
from snapshotter.errors import FailedPreconditionError, InvalidError
from snapshotter.format import fsverity
from snapshotter.format.annotations import PackPlace
from snapshotter.registry.peerclient import Address
from snapshotter.snapshots.differ import DiffService
from snapshotter.snapshots.paths import Paths, check_ancestors, prepare_root
from snapshotter.snapshots.service import SnapshotsService
from snapshotter.snapshots.snapshotter import Snapshotter

LAYER_STORE = "store"
"""Below the root: what podman's layer store has for itself."""
GRPC_THREADS = 16
MESSAGE_MAX = 16 << 20
"""Largest gRPC message in bytes; containerd's own limit."""
STOP_GRACE = 5.0
"""Seconds that requests under way get when the daemon ends."""
ANSWER_TIMEOUT = 10.0
"""Seconds in which the service must answer itself, to be called well."""
SOCKET_PATH_MAX = 107
"""Longest path of a Unix socket in bytes (``sun_path`` of unix(7), less its final NUL)."""

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def running(config: Config, config_path: Path | None) -> Iterator[Callable[[], bool]]:
    """A daemon that serves, its layers mounted, for as long as the block lasts; gives what tells whether it is well.

    Raises:
        FailedPreconditionError: another daemon serves this root or address, or they cannot be used safely.
        InvalidError: the address cannot be one.
    """
    _check_address(config.address)
    peering.asking(config.peers)  # the workers would find out one after another that its files cannot be used
    prepare_root(config.root)
    with contextlib.ExitStack() as stack:
        errors = RecentErrors()
        logging.getLogger("snapshotter").addHandler(errors)
        stack.callback(logging.getLogger("snapshotter").removeHandler, errors)
        keychain = Keychain()
        reach = stack.enter_context(Reach(config, keychain))
        origins = Origins(reach.sources.content, reach.ports)
        sealing = _sealing(config)
        node = Node(config.root, cap=config.cache_cap, read_timeout=config.read_timeout, sealing=sealing)
        stack.callback(node.close)
        workers = config.root / "workers"
        held = Held(SystemdStore() if SystemdStore.is_there() else KeeperStore(workers))
        command = worker_main.command(config, config_path, sealing=sealing is not None)
        supervisor = Supervisor(command, workers, config.mount_workers, held, worker_main.identity(command, config_path))
        remembered = References(config.root / LAYER_STORE / "references")

        def trim_indexes(needed: Collection[PackPlace]) -> None:
            node.indexes.trim({*needed, *remembered.packs()})

        def make_layers(root: Path, origins: Origins) -> Layers:
            return Layers(
                root,
                origins,
                reach.sources,
                supervisor,
                node.cache.directory,
                node.fetch_indexes,
                trim_indexes,
                sealing,
                config.root / "starts" if config.record_starts else None,
            )

        layers = make_layers(config.root, origins)
        shifted = Shifted(Paths(config.root).shifted)
        # holds the lock of the root from here on
        snapshotter = Snapshotter(config.root, layers, shifted if config.remap_ids else None)
        stack.callback(snapshotter.close)
        stack.callback(held.close)
        stack.callback(supervisor.close)
        if not config.remap_ids:
            shifted.hide_all()  # what is left of the time in which it was set would hold layers for ever
        held.open()
        found = supervisor.start()
        stale = supervisor.clear(config.root / "l") + supervisor.clear(config.root / LAYER_STORE / "l")
        if found or stale:
            _log.info("going on with %d mounts of an earlier daemon, %d that nobody serves are taken off", found, stale)
        activity = Activity(supervisor.workers, node.report)
        stack.callback(activity.close)
        activity.start()
        recovery = snapshotter.recover()
        for diff_id, error in recovery.failed.items():
            _log.error("layer %s is not mounted: %s", diff_id.hex(), error)
        mounted, failures = {"containerd": layers}, [snapshotter.failed_layers]
        if config.layer_store_mountpoint is not None:
            # podman's paths name the image, and containerd knows nothing of it
            store_layers = make_layers(config.root / LAYER_STORE, Origins(lambda namespace: None, reach.ports))
            mounted["podman"] = store_layers
            images = RegistryImages(reach.registries)
            tree = stack.enter_context(serving(config.layer_store_mountpoint, remembered, images, store_layers, held))
            failures.append(lambda: tree.failed)
        else:
            take_off(held)
        supervisor.settle()
        held.settle()
        server = grpc.server(
            ThreadPoolExecutor(GRPC_THREADS, "grpc"),
            options=[("grpc.max_receive_message_length", MESSAGE_MAX), ("grpc.so_reuseport", 0)],
        )
        snapshots_pb2_grpc.add_SnapshotsServicer_to_server(SnapshotsService(snapshotter), server)
        diff_pb2_grpc.add_DiffServicer_to_server(DiffService(snapshotter), server)
        if config.cri_image_service:
            proxy = ImageServiceProxy(config.containerd_address, keychain)
            stack.callback(proxy.close)
            server.add_generic_rpc_handlers((proxy,))
        _listen(server, config.address)
        stack.callback(config.address.unlink, missing_ok=True)
        if config.cri_image_service:
            stack.callback(KeychainServer(keychain, keychain_path(config.address)).close)
        status = Status(
            node,
            mounted,
            activity,
            failed=lambda: {diff_id: error for failed in failures for diff_id, error in failed().items()},
            cap=config.cache_cap,
            errors=errors,
        )
        stack.callback(StatusServer(socket_path(config.address), config.metrics_address, status.take).close)
        if config.peers.listen is not None:
            stack.callback(_serve_peers(config.peers, config.peers.listen, node).close)
        server.start()
        stack.callback(lambda: server.stop(STOP_GRACE).wait())
        pull = functools.partial(pull_here, config.containerd_address, reach.registries)
        stack.callback(PullServer(pull_socket(config.address), pull).close)  # pulls need the service: they are ended before it
        supervisor.stand_by()
        yield lambda: supervisor.is_well() and _answers(config.address)


def _sealing(config: Config) -> Sealing | None:
    """The kernel's fs-verity, if the configuration wants it and the root's file system has it.

    Raises:
        FailedPreconditionError: it is required and not to be had.
    """
    sealing = fsverity if fsverity.is_wanted(config.fs_verity, config.root) else None
    how = "by the kernel's fs-verity" if sealing is not None else "by their digests in user space"
    _log.info("chunks and metadata on this node are checked %s", how)
    return sealing


def _serve_peers(config: PeersConfig, address: Address, node: Node) -> PeerServer:
    """What gives other nodes this one's chunks.

    Raises:
        FailedPreconditionError, InvalidError: it cannot listen, or its certificate cannot be used.
    """
    tls = peering.contexts(config, server=True)
    allowance = None if config.rate is None else Allowance(config.rate)
    server = PeerServer(address, node.cache.opened, stats=node.stats, tls=tls, allowance=allowance)
    who = "whoever has a certificate of its authority" if tls is not None else "whoever reaches it"
    _log.info("cached chunks are served at %s, to %s", server.address, who)
    return server


def _answers(address: Path) -> bool:
    """Whether the snapshots service answers: that there is no snapshot without a name."""
    with grpc.insecure_channel(f"unix://{address}") as channel:
        try:
            snapshots_pb2_grpc.SnapshotsStub(channel).Stat(snapshots_pb2.StatSnapshotRequest(), timeout=ANSWER_TIMEOUT)
        except grpc.RpcError as error:
            return error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    return True


def _check_address(address: Path) -> None:
    """Refuse what cannot be a socket's path, before anything is started; a file that is there and is none is left alone."""
    longest = max(len(os.fsencode(place(address))) for place in (socket_path, pull_socket, keychain_path))
    if longest > SOCKET_PATH_MAX:
        raise InvalidError(
            f"{address}: a socket's path has at most {SOCKET_PATH_MAX} bytes, and those beside this one would have {longest}; "
            "choose a shorter address"
        )
    if address.exists() and not address.is_socket():
        raise FailedPreconditionError(f"{address} is there and is no socket: choose another address")


def _listen(server: grpc.Server, address: Path) -> None:
    """Bind the server to a socket that only root can use, in place of one that a dead daemon left."""
    _check_address(address)
    address.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    check_ancestors(address)
    if address.exists():
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(address))
            except ConnectionRefusedError:
                address.unlink()
            except OSError as error:
                raise FailedPreconditionError(f"{address} is there and is no socket of ours: {error.strerror}") from None
            else:
                raise FailedPreconditionError(f"another daemon serves {address}: stop it or choose another address")
    mask = os.umask(0o177)
    try:
        bound = server.add_insecure_port(f"unix://{address}")
    except RuntimeError:
        bound = 0
    finally:
        os.umask(mask)
    if not bound:
        raise FailedPreconditionError(f"cannot listen at {address}: is its directory writable?")
