"""Puts the doctor together: what is looked at, in which order, and which checks judge it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from snapshotter.daemon import invariants
from snapshotter.daemon.config import Config, load
from snapshotter.doctor.asking import registry_facts
from snapshotter.doctor.containerd import ContainerdFacts, check_absent, check_containerd, snapshotter_names
from snapshotter.doctor.crio import check_crio, crio_facts
from snapshotter.doctor.finding import Finding, fail, warn
from snapshotter.doctor.images import check_image
from snapshotter.doctor.inventory import Inventory
from snapshotter.doctor.kernel import check_kernel
from snapshotter.doctor.machine import kernel_facts, service_facts
from snapshotter.doctor.neighbours import peers_facts
from snapshotter.doctor.peers import check_peers
from snapshotter.doctor.podman import check_podman, podman_facts
from snapshotter.doctor.registry import check_registry
from snapshotter.doctor.root import check_root
from snapshotter.doctor.running import containerd_facts
from snapshotter.doctor.service import check_service
from snapshotter.errors import NotFoundError, PuzzlefsError
from snapshotter.format.fsverity import Mode
from snapshotter.registry.reference import Reference


@dataclass(frozen=True, slots=True)
class Request:
    """What to look at: None for the defaults. `reference`: an image whose registry is asked; `look_at_images`: all images."""

    config_path: Path
    config_required: bool
    containerd_address: Path
    containerd_config: str | None = None
    reference: Reference | None = None
    look_at_images: bool = True


def examine(request: Request) -> Iterator[Finding]:
    """All findings, each as soon as it is known, in the order in which a person would mend things."""
    config, config_error = _config(request)
    used = config or Config()
    yield from check_kernel(kernel_facts(used.root), require_verity=used.fs_verity is Mode.REQUIRE, remap_ids=used.remap_ids)
    facts, containerd_pid = containerd_facts(request.containerd_address, request.containerd_config)
    yield from check_service(service_facts(config, config_error, request.config_path, containerd_pid))
    yield from _root(used.root)
    if used.layer_store_mountpoint is None or request.containerd_address.exists():
        yield from check_containerd(facts, str(used.address), str(used.root), remap_ids=used.remap_ids)
    else:
        yield check_absent(facts.address, installed=shutil.which("containerd") is not None)
    if used.layer_store_mountpoint is not None:
        mountpoint, crio = used.layer_store_mountpoint, crio_facts()
        yield from check_podman(podman_facts(mountpoint), named_elsewhere=crio.names(mountpoint))
        yield from check_crio(crio, mountpoint)
    yield from check_peers(peers_facts(used.peers))
    if request.reference is not None:
        yield from check_registry(registry_facts(request.reference, used))
    if request.look_at_images and not facts.unreachable:
        yield from _images(request, facts, str(used.address))


def _root(root: Path) -> Iterator[Finding]:
    try:
        yield from check_root(root, invariants.settled(root))
    except NotFoundError:
        return  # no daemon has ever run: others say so
    except (PuzzlefsError, OSError) as error:
        yield fail("root.agrees", f"the state in {root} cannot be read: {error}", "run the doctor as root")


def _config(request: Request) -> tuple[Config | None, str]:
    if not request.config_required and not request.config_path.exists():
        return Config(), ""
    try:
        return load(request.config_path), ""
    except PuzzlefsError as error:
        return None, str(error)


def _images(request: Request, facts: ContainerdFacts, address: str) -> Iterator[Finding]:
    names = snapshotter_names(facts, address)
    if not names:
        return
    try:
        with Inventory(request.containerd_address) as inventory:
            for image in inventory.images(names[0]):
                yield check_image(image)
    except (PuzzlefsError, grpc.RpcError) as error:
        text = str(error.details() if isinstance(error, grpc.Call) else error)
        yield warn("images", f"containerd's images cannot be listed: {text}", "systemctl status containerd")
